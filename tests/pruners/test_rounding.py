"""Rounding to few levels: GPTQ against its definition by least squares, never worse than nearest; scales by a search,
shared values by their normal equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.networks.quantise.grid import Scales, best_scale, code_range
from secateur.networks.quantise.on_grid import GRIDS
from secateur.networks.quantise.shared import Values
from secateur.pruners.repair.rounding import (
    BLOCK,
    ROUNDINGS,
    Rounded,
    by_columns,
    gptq,
    lost,
    nearest,
    rounded,
    with_best_values,
)

SEEDS = st.integers(0, 2**31)
BITS = st.sampled_from([2, 3, 4, 6, 8])


def drawn(seed: int, groups: int, outputs: int, inputs: int, samples: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (groups, q, p), and correlated second moments (groups, p, p)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, samples or 3 * inputs, inputs)) @ rng.normal(size=(groups, inputs, inputs))
    weight = torch.from_numpy(rng.normal(size=(groups, outputs, inputs)) * rng.uniform(0.1, 5, (groups, outputs, 1)))
    return weight, torch.from_numpy(x.transpose(0, 2, 1) @ x / x.shape[1])


def on_rows(weight: torch.Tensor, gram: torch.Tensor | None, ridge: float, bits: int, rounding: Any) -> Rounded:
    return rounded(weight, gram, ridge, bits, rounding, torch.float32, GRIDS["row"])


def scale_of(found: Rounded) -> torch.Tensor:
    assert isinstance(found.levels, Scales)
    return found.levels.scale


def by_least_squares(w: np.ndarray, h: np.ndarray, scale: float, bits: int) -> np.ndarray:
    """One row: fix the columns one after the other, and let all that are left re-fit themselves to what is missing."""
    codes, left = np.zeros(len(w)), w.copy()
    order = np.argsort(-np.diag(h), kind="stable")
    for step, column in enumerate(order):
        codes[column] = np.clip(np.round(left[column] / scale), *code_range(bits))
        free, fixed = order[step + 1 :], order[: step + 1]
        error = codes[fixed] * scale - w[fixed]
        left[free] = w[free] - np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, fixed)] @ error)
    return codes


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(1, 2), inputs=st.integers(1, 9), bits=BITS)
def test_gptq_rounds_what_least_squares_leaves_of_each_column(seed: int, groups: int, inputs: int, bits: int) -> None:
    weight, gram = drawn(seed, groups, 3, inputs)
    gram = gram + 0.1 * torch.eye(inputs, dtype=gram.dtype)
    scale = best_scale(weight, bits, torch.ones(()))
    found, plain = (rounding(weight, gram, Scales(scale, bits)).weight for rounding in (gptq, nearest))
    for g, q in np.ndindex(groups, 3):
        expected = by_least_squares(weight[g, q].numpy(), gram[g].numpy(), float(scale[g, q]), bits)
        errors = [
            lost((laid - weight[g, q])[None, None], gram[g, None]).item()
            for laid in (torch.from_numpy(expected) * scale[g, q], plain[g, q], found[g, q])
        ]
        assert errors[2] == pytest.approx(min(errors[:2]), rel=1e-6, abs=1e-12)


@settings(max_examples=30)
@given(seed=SEEDS, inputs=st.integers(1, 30), bits=BITS, samples=st.integers(1, 40))
def test_gptq_never_loses_more_than_nearest_and_stays_in_range(seed: int, inputs: int, bits: int, samples: int) -> None:
    weight, gram = drawn(seed, 2, 4, inputs, samples)  # fewer samples than inputs, too
    found, plain = (on_rows(weight, gram, 1e-4, bits, ROUNDINGS[name]) for name in ("gptq", "nearest"))
    assert torch.equal(scale_of(found), scale_of(plain))
    assert bool((scale_of(found) > 0).all())
    codes = found.weight / scale_of(found)
    assert torch.equal(codes.round() * scale_of(found), found.weight)
    assert code_range(bits)[0] <= round(float(codes.min())) <= round(float(codes.max())) <= code_range(bits)[1]
    damped = gram + 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(inputs)
    assert bool((lost(found.weight - weight, damped) <= lost(plain.weight - weight, damped) * (1 + 1e-9)).all())


def test_gptq_gains_over_blocks_and_nothing_on_white_inputs() -> None:
    weight, gram = drawn(1, 1, 8, 2 * BLOCK + 5)
    found, plain = (on_rows(weight, gram, 1e-3, 3, ROUNDINGS[name]) for name in ("gptq", "nearest"))
    ratio = lost(found.weight - weight, gram).sum() / lost(plain.weight - weight, gram).sum()
    assert ratio < 0.6
    white = torch.eye(gram.shape[1], dtype=gram.dtype)[None]
    assert torch.equal(*(on_rows(weight, white, 0.0, 3, rounding).weight for rounding in (gptq, nearest)))


@settings(max_examples=30)
@given(seed=SEEDS, inputs=st.integers(1, 40), bits=BITS)
def test_a_scale_is_as_good_as_a_fine_search_finds(seed: int, inputs: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    weight, importance = rng.standard_t(3, size=inputs), rng.uniform(0.1, 2.0, inputs)
    found = best_scale(torch.from_numpy(weight)[None], bits, torch.from_numpy(importance)).item()
    least, greatest = code_range(bits)

    def error(scale: np.ndarray) -> np.ndarray:
        codes = np.clip(np.round(weight / scale), least, greatest)
        return (importance * (codes * scale - weight) ** 2).sum(-1)

    span = max((weight / greatest).max(), (weight / least).max())
    finest = error(span * np.linspace(0.1, 1.0, 2000)[:, None]).min()
    room = 1.25 if bits <= 4 else 2.5  # of many bits every scale loses next to nothing, and luck counts
    assert error(np.array(found)) <= room * finest + 1e-12
    assert error(np.array(found)) <= error(np.array(span)) + 1e-12


def test_moments_that_are_not_finite_and_rows_of_zeros_are_rounded_to_nearest() -> None:
    weight, gram = drawn(0, 1, 3, 6)
    weight[0, 1] = 0.0
    found = on_rows(weight, gram * torch.inf, 1e-4, 4, gptq)
    assert torch.equal(found.weight, on_rows(weight, None, 1e-4, 4, gptq).weight)
    assert bool((found.weight[0, 1] == 0).all())
    assert bool(torch.isfinite(found.weight).all())
    assert float((found.weight - weight).abs().max()) < float(weight.abs().max()) / 4


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(1, 3), inputs=st.integers(1, 12), k=st.integers(1, 9), pruned=st.booleans())
def test_shared_values_are_those_of_their_normal_equations(
    seed: int, groups: int, inputs: int, k: int, pruned: bool
) -> None:
    weight, gram = drawn(seed, groups, 4, inputs)
    gram = gram + 0.1 * torch.eye(inputs, dtype=gram.dtype)
    if pruned:
        weight[:, ::2, ::2] = 0.0
    table = torch.from_numpy(np.sort(np.random.default_rng(seed).normal(size=k)))
    laid = nearest(weight, gram, Values(table, torch.float64))
    assert isinstance(laid.levels, Values)
    one_hot = torch.nn.functional.one_hot(laid.levels.places(laid.weight), k).double() * (weight != 0)[..., None]
    normal = torch.einsum("gqak,gab,gqbl->kl", one_hot, gram, one_hot)
    right = torch.einsum("gqak,gab,gqb->k", one_hot, gram, weight)
    expected = one_hot @ (torch.linalg.pinv(normal, hermitian=True) @ right)
    found = with_best_values(weight, gram, laid)
    errors = [float(lost(v - weight, gram).sum()) for v in (expected, found.weight, laid.weight)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-6, abs=1e-9)
    assert errors[1] <= errors[2]
    assert bool((found.weight[weight == 0] == 0).all())


def test_of_shared_values_each_step_loses_less() -> None:
    weight, gram = drawn(0, 1, 16, 40)
    shared = GRIDS["shared"].fitted(weight, 3, torch.ones(()), torch.float32)
    plain, columns = nearest(weight, gram, shared), by_columns(weight, gram, shared)
    solved, both = with_best_values(weight, gram, plain), gptq(weight, gram, shared)
    errors = [float(lost(found.weight - weight, gram).sum()) for found in (plain, solved, columns, both)]
    assert errors[3] < errors[2] < errors[1] < errors[0]
    for found in (plain, solved, columns, both):
        assert len(found.weight.unique()) <= 8
        assert torch.equal(found.weight.float().double(), found.weight)  # numbers of the type they are stored in
        assert torch.equal(found.levels.values(found.levels.codes(found.weight)), found.weight)
