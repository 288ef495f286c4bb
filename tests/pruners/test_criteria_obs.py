"""Elimination order and error curve against a greedy re-fit of raw samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from secateur.pruners.channels.criteria import Elimination, elimination, obs
from secateur.pruners.channels.criteria.regressions import Regression, consumer_positions, regressions
from secateur.pruners.channels.method import cut
from secateur.pruners.context import Context
from secateur.pruners.repair import gram, statistics
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


Problem = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, weights, and (p,) the unit of a column; -1: it stays


def brute_force(problems: list[Problem], width: int, at_once: int = obs.AT_ONCE) -> Elimination:
    """A least-squares fit of the samples for every unit that might go next, and the cheapest part goes."""
    totals = [np.square(x @ w).sum() for x, w, _ in problems]

    def errors(keep: list[int]) -> np.ndarray:
        gone = np.setdiff1d(np.arange(width), keep)
        found = [refit(x, w, ~np.isin(owner, gone)) for x, w, owner in problems]
        return np.mean([np.array(error) / total for error, total in zip(found, totals, strict=True)], axis=0)

    keep, gone, curve = list(range(width)), [], {0: 0.0}
    while keep:
        units = sorted(keep, key=lambda u: errors([v for v in keep if v != u])[0])[: max(1, len(keep) // at_once)]
        keep = [unit for unit in keep if unit not in units]
        gone += units
        curve[len(gone)] = errors(keep)[1]
    known = np.interp(np.arange(width + 1), list(curve), list(curve.values()))
    return Elimination(np.array(gone[::-1]), known[::-1])


def problems_of(seen: Context, layer) -> list[Problem]:
    found = []
    for name, positions in consumer_positions(layer).items():
        x, w = samples(seen, name)
        owner = np.full(seen.model.get_parameter(f"{name}.weight").shape[1], -1)
        for unit, row in enumerate(positions):
            owner[row] = unit
        found.append((x, w, np.resize(owner, w.shape[1])))  # once a kernel position
    return found


@st.composite
def made_up(draw: st.DrawFn, width: int) -> Problem:
    """Correlated columns, those of the units strewn among others that stay."""
    groups, size, stay, outputs = (draw(st.integers(low, high)) for low, high in ((1, 2), (1, 3), (0, 3), (1, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    p = width * size + stay
    x = rng.standard_normal((groups, 3 * p, p)) @ rng.standard_normal((groups, p, p))
    owner = rng.permutation(np.append(np.repeat(np.arange(width), size), np.full(stay, -1)))
    return x, rng.standard_normal((groups, p, outputs)), owner


def surgery_of(problem: Problem, width: int, pending: int) -> obs._Surgery:
    x, w, owner = problem
    total = np.square(x @ w).sum()
    columns = np.stack([np.flatnonzero(owner == unit) for unit in range(width)])
    weight, gram = (torch.from_numpy(matrix) for matrix in (w.transpose(0, 2, 1), x.transpose(0, 2, 1) @ x / total))
    return obs._Surgery(Regression("made up", weight, gram, torch.from_numpy(columns), total), pending)


@pytest.mark.parametrize(("name", "cut", "layer_name"), CASES)
def test_order_and_errors_are_those_of_a_greedy_refit_of_raw_samples(name: str, cut: str, layer_name: str) -> None:
    seen = context(name, cut)
    layer = seen.structure.layers[seen.structure.index(layer_name)]
    found, expected = elimination(seen, layer), brute_force(problems_of(seen, layer), layer.units)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 2), st.integers(1, 12), st.integers(2, 9))
def test_however_many_go_at_once_and_wait_it_is_the_greedy_refit(
    data, width: int, consumers: int, pending: int, at_once: int
) -> None:
    problems = [data.draw(made_up(width)) for _ in range(consumers)]
    found = obs._greedy([surgery_of(problem, width, pending) for problem in problems], width, at_once)
    expected = brute_force(problems, width, at_once)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("outputs", [5, 500])
def test_a_wide_layer_drops_what_has_gone_and_ends_as_if_it_had_not(outputs: int) -> None:
    """360 columns of 40 units and 3 that stay; in blocks of four units, and with nothing dropped at all."""
    width, size = 40, 9
    rng = np.random.default_rng(0)
    owner = np.append(np.tile(np.arange(width), size), [-1] * 3)
    x = rng.standard_normal((1, 800, 120)) @ rng.standard_normal((1, 120, len(owner)))  # a third of full rank
    problem = x, rng.standard_normal((1, len(owner), outputs)), owner
    at_once, never = (obs._greedy([surgery_of(problem, width, pending)], width) for pending in (1, 1000))
    blocks = surgery_of(problem, width, 4 * size)
    assert obs._greedy([blocks], width).order.tolist() == at_once.order.tolist() == never.order.tolist()
    np.testing.assert_allclose(never.errors, at_once.errors, rtol=1e-8)
    assert blocks.inverse.shape == (1, 3, 3)
    assert blocks.weight.shape == (1, 3, min(outputs, 363))


@pytest.mark.parametrize(("name", "cut"), zoo.few_cases())
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


def test_without_anything_to_refit_the_norms_and_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_INPUTS", 0)
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
        costs = surgery.costs()
        assert np.all(np.isinf(costs[:unit]))
        assert np.all((costs[unit:] >= 0.0) & np.isfinite(costs[unit:]))
        surgery.remove(np.array([unit]))
        assert np.isfinite(surgery.error)
