"""An image is an image: in which batches the images come changes no result.

Sums run in another order, so figures agree to `ROUNDING`; what is decided by them is the same: which units go, which
answers are right.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from secateur.configs.schema import LayersConfig, Repair
from secateur.envs import CandidateEvaluator, layer_statistics
from secateur.networks.inference import logits
from secateur.pruners import METHODS, Compressor, Context
from secateur.pruners.channels.criteria import CRITERIA, rank
from secateur.pruners.loss_model import loss_curves
from secateur.pruners.repair.residual_branches import residual_branch_variance
from secateur.pruners.repair.sensitivity import layer_sensitivity

COUNT = 60
ROUNDING = 1e-3  # relative, of single-precision sums that pass through a solver
REPAIRS = {
    "nothing": Repair(kind="none", guard=False),
    "gram": Repair(kind="gram", guard=False),
    "sequential": Repair(kind="sequential", images=25, samples=8, guard=False),
    "adaptive BN": Repair(kind="none", adaptive_bn=59, guard=False),
    "all": Repair(kind="sequential", samples=8, adaptive_bn=31, guard=False),
}
CASES = [
    ("residual", "channels"),
    pytest.param("normalised", "channels", marks=pytest.mark.slow),
    pytest.param("residual", "weights", marks=pytest.mark.slow),
]

Figures = dict[str, Tensor]


@functools.cache
def images() -> tuple[Tensor, Tensor]:
    """No image is like another: the later ones are larger."""
    found = zoo.images("residual", COUNT, seed=1) * torch.linspace(0.5, 2.0, COUNT).view(-1, 1, 1, 1)
    return found, torch.arange(COUNT) % zoo.CLASSES


def context(name: str, method: str, sizes: tuple[int, ...]) -> Context:
    model = zoo.make(name)
    structure = METHODS[method].find(model, zoo.RGB, LayersConfig())
    batches = zip(*(torch.split(part, list(sizes)) for part in images()), strict=True)
    return Context(model, structure, list(batches))


@functools.lru_cache(maxsize=8)
def orders(name: str, sizes: tuple[int, ...]) -> dict[str, list[list[int]]]:
    seen = context(name, "channels", sizes)
    return {criterion: [order.tolist() for order in rank(seen, criterion)] for criterion in CRITERIA}


@functools.lru_cache(maxsize=8)
def figures(name: str, method: str, sizes: tuple[int, ...]) -> Figures:
    seen = context(name, method, sizes)
    found = {
        "statistics": layer_statistics(seen),
        "curves": np.concatenate(loss_curves(seen)),
        "sensitivity": layer_sensitivity(seen),
        "branches": residual_branch_variance(seen),
    }
    compressor = Compressor(seen)
    kept = np.array([layer.choices[len(layer.choices) // 2] for layer in seen.structure.layers])
    for name, how in REPAIRS.items():
        evaluated = CandidateEvaluator(compressor, seen.calibration, how).evaluate(kept)
        found[name] = [evaluated.reconstruction_loss, evaluated.accuracy]
        found[f"{name}: logits"] = logits(compressor(kept, how), seen.calibration)
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in found.items()}


SIZES = [(1,) * COUNT, (7,) * 8 + (4,), (40, 20), (59, 1)]
ragged = (
    st.lists(st.integers(1, 20), min_size=1, max_size=12)
    .map(lambda cuts: (*cuts, 500))
    .map(lambda sizes: tuple(n for n in np.diff([0, *np.minimum(np.cumsum(sizes), COUNT)]).tolist() if n))
)


@pytest.mark.parametrize(("name", "method"), CASES)
@settings(max_examples=2)
@given(sizes=st.sampled_from(SIZES) | ragged)
def test_the_same_figures(name: str, method: str, sizes: tuple[int, ...]) -> None:
    expected, found = figures(name, method, (COUNT,)), figures(name, method, sizes)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=ROUNDING, atol=ROUNDING * float(tensor.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normalised"])
@settings(max_examples=3)
@given(sizes=st.sampled_from(SIZES) | ragged)
def test_the_same_units(name: str, sizes: tuple[int, ...]) -> None:
    assert orders(name, sizes) == orders(name, (COUNT,))
