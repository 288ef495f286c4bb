"""The LASSO on Gram matrices against scikit-learn's on raw samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import lasso_path

import zoo
from secateur.pruners.channels.criteria import rank
from secateur.pruners.channels.criteria.lasso import lasso, problem
from secateur.pruners.channels.criteria.regressions import consumer_positions, regressions
from secateur.pruners.context import Context
from secateur.pruners.repair import statistics
from secateur.pruners.repair.statistics import Sampler

CASES = [
    ("vgg", "inner", "0.0"),
    ("vgg", "inner", "2.0"),  # flattened
    ("plain_bias", "inner", "2"),
    ("grouped", "inner", "1.0"),
    ("residual", "inner", "layer3.0.conv1"),
    ("shared", "inner", "stem.0"),  # no intercept
    ("downsample", "all", "stem.0"),  # several consumers
    ("densenet", "inner", "grow.0"),
    ("tokens", "inner", "fc1"),
]


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def contributions(seen: Context, layer) -> tuple[np.ndarray, np.ndarray]:
    """(samples, width) Zᵢ with ‖Wᵢ‖ = 1 and (samples,) Y, every consumer over the root of its output's variance."""
    found, norms = [], np.zeros(layer.units)
    for name, positions in consumer_positions(layer).items():
        module = seen.model.get_submodule(name)
        sampler, rows = Sampler(module), []
        hook = module.register_forward_pre_hook(lambda _, args, s=sampler, r=rows: r.append(s.inputs(args[0])))
        with torch.no_grad():
            for images, _ in seen.calibration:
                seen.model(images)
        hook.remove()
        x, w = torch.cat(rows, 1).double().numpy(), sampler.weight(module.weight.detach()).numpy()
        if seen.moments.has_intercept(seen.model, name):
            x = x - x.mean(1, keepdims=True)
        outputs = [x_g @ w_g.T for x_g, w_g in zip(x, w, strict=True)]
        scale = np.sqrt(sum(np.square(y).sum() for y in outputs) / x.shape[1])
        place = np.arange(w.shape[2]) % module.weight.shape[1]
        units = []
        for unit in range(layer.units):
            mine = np.isin(place, positions[unit])
            parts = [x_g[:, mine] @ w_g[:, mine].T for x_g, w_g in zip(x, w, strict=True)]
            units.append(np.concatenate([part.ravel() for part in parts]) / scale / np.sqrt(x.shape[1]))
            norms[unit] += np.square(w[:, :, mine]).sum() / scale**2
        found.append(np.stack(units, 1))
    z = np.concatenate(found)
    return z / np.sqrt(norms), z.sum(1)


@pytest.mark.parametrize(("name", "cut", "layer_name"), CASES)
def test_the_quadratic_form_is_that_of_the_raw_samples(name: str, cut: str, layer_name: str) -> None:
    seen = context(name, cut)
    layer = seen.structure.layers[seen.structure.index(layer_name)]
    z, y = contributions(seen, layer)
    gram, cross = problem(regressions(seen, layer))
    np.testing.assert_allclose(gram, z.T @ z, rtol=1e-4, atol=1e-5 * gram.max())
    np.testing.assert_allclose(cross, z.T @ y, rtol=1e-4, atol=1e-5 * np.abs(cross).max())


@pytest.mark.parametrize(("name", "cut", "layer_name"), CASES)
def test_the_first_units_are_the_active_set_of_scikit_learn(name: str, cut: str, layer_name: str) -> None:
    seen = context(name, cut)
    layer = seen.structure.layers[seen.structure.index(layer_name)]
    order = lasso(seen, layer)
    z, y = contributions(seen, layer)
    largest = np.abs(z.T @ y).max() / len(y)
    penalties, path, _ = lasso_path(z, y, alphas=largest * np.geomspace(1.0, 1e-4, 300), tol=1e-9, max_iter=50_000)
    gram, cross = problem(regressions(seen, layer))
    checked = set()
    for penalty, beta in zip(penalties * len(y), path.T, strict=True):
        active = np.flatnonzero(beta)
        if len(active) in checked or not len(active):
            continue
        checked.add(len(active))
        assert set(order[: len(active)]) == set(active)
        slack = cross - gram @ beta  # of the paper's problem, KKT: λ·sign(β) where β ≠ 0, at most λ elsewhere
        np.testing.assert_allclose(slack[active], penalty * np.sign(beta[active]), rtol=2e-3, atol=1e-4 * penalties[0])
        assert np.all(np.abs(slack) <= penalty * 1.002 + 1e-9)
    assert len(checked) >= min(3, layer.units)


def test_a_unit_that_never_fires_or_is_never_looked_at_goes_first() -> None:
    seen = context("vgg")
    with torch.no_grad():
        seen.model[0][1].weight[3] = 0.0
        seen.model[0][1].bias[3] = -1.0
        seen.model[2][0].weight[:, 6] = 0.0
    assert set(rank(seen, "lasso")[0][-2:]) == {3, 6}


def test_of_two_equal_units_one_is_enough() -> None:
    seen = context("plain_bias")
    with torch.no_grad():
        for tensor in (seen.model[0].weight, seen.model[0].bias, seen.model[2].weight.transpose(0, 1)):
            tensor[5] = tensor[2]
    order = rank(seen, "lasso")[0]
    assert order[-1] in (2, 5)


def test_without_least_squares_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_INPUTS", 0)  # no layer is one that could be fitted
    seen = context("conv3d")
    assert rank(seen, "lasso")[0].tolist() == rank(seen, "l1")[0].tolist()
