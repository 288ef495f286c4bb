"""Elimination order and error curve against a greedy re-fit of raw samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import zoo
from secateur.pruners.channels.criteria import Elimination, elimination, obs
from secateur.pruners.channels.criteria.regressions import consumer_positions, regressions
from secateur.pruners.channels.method import cut
from secateur.pruners.context import Context
from secateur.pruners.repair import gram
from secateur.pruners.repair.gram import output_error, repair_from_moments
from secateur.pruners.repair.solve import RIDGE
from secateur.pruners.repair.statistics import Sampler

CASES = [
    ("vgg", "inner", "0.0"),  # convolution, its mean in the batch norm
    ("vgg", "inner", "2.0"),  # flattened: four columns a unit
    ("plain_bias", "inner", "2"),  # a bias
    ("bias_and_norm", "inner", "3"),
    ("grouped", "inner", "1.0"),  # four groups
    ("shared", "inner", "stem.0"),  # no intercept
    ("densenet", "inner", "grow.0"),  # columns that always stay; two consumers
    ("downsample", "all", "stem.0"),
    ("tokens", "inner", "fc1"),
]


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def samples(seen: Context, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(groups, n, p) inputs of a consumer, centred if a constant can be absorbed, and its (groups, p, q) weights."""
    module = seen.model.get_submodule(name)
    sampler, rows = Sampler(module), []
    hook = module.register_forward_pre_hook(lambda _, args: rows.append(sampler.inputs(args[0])))
    with torch.no_grad():
        for images, _ in seen.calibration:
            seen.model(images)
    hook.remove()
    x = torch.cat(rows, 1).double().numpy()
    if seen.moments.has_intercept(seen.model, name):
        x = x - x.mean(1, keepdims=True)
    return x, sampler.weight(module.weight.detach()).transpose(1, 2).numpy()


def refit(x: np.ndarray, w: np.ndarray, stay: np.ndarray) -> tuple[float, float]:
    """Error of the least-squares fit on the columns that stay: with its ridge, and without."""
    with_ridge = without = 0.0
    for x_g, w_g in zip(x, w, strict=True):
        damping = np.sqrt(RIDGE * np.square(x_g).sum() / x_g.shape[1]) * np.eye(x_g.shape[1])
        tall = np.vstack([x_g, damping])
        fitted = np.zeros_like(w_g)
        fitted[stay] = np.linalg.lstsq(tall[:, stay], tall @ w_g, rcond=None)[0]
        with_ridge += np.square(tall @ (w_g - fitted)).sum()
        without += np.square(x_g @ (w_g - fitted)).sum()
    return with_ridge, without


def brute_force(seen: Context, layer) -> Elimination:
    problems = []
    for name, positions in consumer_positions(layer).items():
        x, w = samples(seen, name)
        channels = seen.model.get_parameter(f"{name}.weight").shape[1]
        problems.append((x, w, np.square(x @ w).sum(), positions, channels))

    def errors(keep: list[int]) -> np.ndarray:
        found = []
        for x, w, total, positions, channels in problems:
            gone = positions[np.setdiff1d(np.arange(layer.units), keep)].ravel()
            stay = ~np.isin(np.arange(w.shape[1]) % channels, gone)
            found.append(np.array(refit(x, w, stay)) / total)
        return np.mean(found, axis=0)

    keep, gone, curve = list(range(layer.units)), [], [0.0]
    while keep:
        unit = min(keep, key=lambda u: errors([v for v in keep if v != u])[0])
        keep.remove(unit)
        gone.append(unit)
        curve.append(errors(keep)[1])
    return Elimination(np.array(gone[::-1]), np.array(curve[::-1]))


@pytest.mark.parametrize(("name", "cut", "layer_name"), CASES)
def test_order_and_errors_are_those_of_a_greedy_refit_of_raw_samples(name: str, cut: str, layer_name: str) -> None:
    seen = context(name, cut)
    layer = seen.structure.layers[seen.structure.index(layer_name)]
    found, expected = elimination(seen, layer), brute_force(seen, layer)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "cut"), zoo.small_cases())
def test_the_fewer_units_the_larger_the_error(name: str, cut: str) -> None:
    seen = context(name, cut)
    for layer in seen.structure.layers:
        found = elimination(seen, layer)
        assert sorted(found.order.tolist()) == list(range(layer.units))
        assert found.errors.shape == (layer.units + 1,)
        assert found.errors[-1] == 0.0
        assert np.all(np.diff(found.errors) <= 0.0)
        assert 0.0 < found.errors[0] <= 1.0
        assert np.shares_memory(elimination(seen, layer).order, found.order)  # computed once


@pytest.mark.parametrize("name", ["vgg", "residual", "grouped", "conv1d", "tokens"])
def test_errors_are_those_of_a_repair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "damping", lambda _samples, _inputs: RIDGE)
    seen = context(name)
    for index, layer in enumerate(seen.structure.layers):
        found = elimination(seen, layer)
        for keep in range(1, layer.units + 1):
            compressed = cut(seen.model, seen.structure, seen.structure.alone(index, found.order, keep))
            repair_from_moments(compressed, seen.model, seen.moments)
            error = output_error(compressed, seen.model, seen.moments)
            assert found.errors[keep] == pytest.approx(error, rel=1e-3, abs=1e-6)


def test_all_gone_is_all_lost() -> None:
    seen = context("residual")
    for layer in seen.structure.layers:
        assert elimination(seen, layer).errors[0] == pytest.approx(1.0, rel=1e-6)


def test_a_unit_that_never_fires_goes_first_and_costs_nothing() -> None:
    seen = context("vgg")
    with torch.no_grad():
        seen.model[0][1].weight[3] = 0.0
        seen.model[0][1].bias[3] = -1.0
    found = elimination(seen, seen.structure.layers[0])
    assert found.order[-1] == 3
    assert found.errors[7] == pytest.approx(0.0, abs=1e-9)


def test_a_unit_said_twice_is_only_needed_once() -> None:
    seen = context("plain_bias")
    with torch.no_grad():
        for tensor in (seen.model[0].weight, seen.model[0].bias):
            tensor[5] = tensor[2]
    found = elimination(seen, seen.structure.layers[0])
    assert found.order[-1] in (2, 5)
    assert found.errors[6] == pytest.approx(0.0, abs=1e-3)


def test_without_anything_to_refit_the_norms_and_a_straight_line() -> None:
    seen = context("conv3d")
    found = elimination(seen, seen.structure.layers[0])
    norms = seen.model[0].weight.detach().flatten(1).abs().sum(1)
    assert found.order.tolist() == norms.argsort(descending=True).tolist()
    np.testing.assert_allclose(found.errors, 1 - np.arange(7) / 6)


def test_a_layer_whose_outputs_never_move() -> None:
    seen = context("plain_bias")
    with torch.no_grad():
        seen.model[0].weight.zero_()
        seen.model[0].bias.zero_()
    found = elimination(seen, seen.structure.layers[0])
    np.testing.assert_allclose(found.errors, 1 - np.arange(8) / 7)


def test_a_gram_matrix_that_rounding_made_indefinite() -> None:
    seen = context("plain_bias")
    (regression,) = regressions(seen, seen.structure.layers[0])
    values, vectors = torch.linalg.eigh(regression.gram)
    values[:, 0] = -1e-3 * values.mean()
    surgery = obs._Surgery(replace(regression, gram=vectors @ torch.diag_embed(values) @ vectors.transpose(1, 2)))
    for unit in range(7):
        assert np.all(surgery.costs(np.arange(unit, 7)) >= 0.0)
        surgery.remove(unit)
        assert np.isfinite(surgery.error)
