"""DCP's greedy selection against gradients of networks whose weights were really replaced."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import zoo
from secateur.pruners.channels.criteria.discrimination import gradient_norms, join
from secateur.pruners.channels.criteria.regressions import regressions
from secateur.pruners.channels.method import cut
from secateur.pruners.context import Context
from secateur.pruners.repair import statistics
from secateur.pruners.repair.gram import repair_from_moments


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def norms(seen: Context, chosen: list[int], discrimination: float, index: int = 0) -> np.ndarray:
    layer = seen.structure.layers[index]
    problems = {found.name: found for found in regressions(seen, layer)}
    return gradient_norms(seen, layer, chosen, problems, 1000, discrimination)


def repaired(seen: Context, chosen: list[int], index: int) -> torch.nn.Module:
    """The smaller network, as a repair would leave it."""
    selection = zoo.whole(seen.structure)
    selection[index] = np.sort(chosen)
    compressed = cut(seen.model, seen.structure, selection)
    repair_from_moments(compressed, seen.model, seen.moments)
    return compressed.model


@pytest.mark.parametrize(("name", "index", "consumer"), [("vgg", 0, "2.0"), ("plain_bias", 0, "2"), ("prelu", 1, "4")])
def test_slopes_of_the_loss_are_those_of_the_repaired_network(name: str, index: int, consumer: str) -> None:
    seen = context(name)
    chosen = [1, 3, 4]
    pruned = copy.deepcopy(repaired(seen, chosen, index))
    images, labels = (torch.cat(parts) for parts in zip(*seen.calibration, strict=True))
    F.cross_entropy(pruned(images), labels).backward()
    slopes = pruned.get_parameter(f"{consumer}.weight").grad.double().square().sum((0, 2, 3)).sqrt()
    found = norms(seen, chosen, 1e6, index)[chosen] / 1e6  # so large a λ that nothing else counts
    np.testing.assert_allclose(found, slopes, rtol=1e-2, atol=1e-5)


def test_gradients_of_the_reconstruction_are_numerical_ones() -> None:
    seen = context("vgg")
    (problem,) = regressions(seen, seen.structure.layers[0])
    found = norms(seen, [], 0.0)
    weight, gram = problem.weight[0], problem.gram[0]  # with nothing chosen, V = 0
    for unit, columns in enumerate(problem.columns):
        v = torch.zeros_like(weight, requires_grad=True)
        error = ((weight - v) @ gram * (weight - v)).sum() / 2
        (gradient,) = torch.autograd.grad(error, v)
        assert found[unit] == pytest.approx(float(gradient[:, columns].norm()), rel=1e-9)


def test_what_has_been_fitted_has_no_gradient_left() -> None:
    found = norms(context("vgg"), [1, 3, 4], 0.0)
    assert found[[1, 3, 4]].max() < 1e-2 * found[[0, 2, 5, 6, 7]].min()


def test_the_largest_gradient_joins_next() -> None:
    seen = context("vgg")
    layer = seen.structure.layers[0]
    order = join(seen, layer, images=1000, rounds=None, discrimination=1.0).tolist()
    for taken in range(layer.units):
        left = norms(seen, order[:taken], 1.0)
        assert left[order[taken]] == max(left[order[taken:]])
    first = np.argsort(-norms(seen, [], 1.0), kind="stable")[:4]
    assert join(seen, layer, images=1000, rounds=2, discrimination=1.0)[:4].tolist() == first.tolist()


def test_without_moments_the_loss_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_INPUTS", 0)  # no layer is one that could be fitted
    found = norms(context("conv3d"), [0, 1], 1.0)
    assert np.all(np.isfinite(found))
    assert np.any(found > 0.0)
