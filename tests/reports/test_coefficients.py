from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.reports.coefficients import coefficients


def daniels(x, y, score):
    """The general correlation coefficient of Daniels (1944): a sum over all pairs of their scored differences."""
    a, b = (score(np.subtract.outer(values, values)) for values in (x, y))
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def ranks(values):
    """Mid-ranks by counting."""
    return np.array([np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values])


@given(
    pairs=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12).filter(
        lambda pairs: all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
    )
)
def test_the_coefficients_are_what_their_formula_says(pairs):
    x, y = np.array(pairs, dtype=float).T
    found = coefficients(x, y)
    assert found["pearson"] == pytest.approx(daniels(x, y, lambda d: d))
    assert found["spearman"] == pytest.approx(daniels(ranks(x), ranks(y), lambda d: d))
    assert found["kendall"] == pytest.approx(daniels(x, y, np.sign))
    low, high = found["spearman_interval"]
    assert -1.0 - 1e-9 <= low <= high <= 1.0 + 1e-9


def test_the_interval_covers_the_truth_and_narrows_with_more_plans():
    rng = np.random.default_rng(0)
    widths = {}
    for n in (15, 135):
        intervals = []
        for _ in range(20):
            x = rng.normal(size=n)
            intervals.append(coefficients(x, 0.8 * x + 0.6 * rng.normal(size=n))["spearman_interval"])
        widths[n] = np.mean([high - low for low, high in intervals])
    truth = 6 / np.pi * np.arcsin(0.8 / 2)  # Spearman of a normal pair with Pearson 0.8
    assert sum(low <= truth <= high for low, high in intervals) >= 16
    assert widths[135] == pytest.approx(widths[15] / 3, rel=0.4)


def test_the_p_values_tell_chance_from_agreement():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 200, 12))
    chance = [coefficients(a, b) for a, b in zip(*x, strict=True)]
    agreeing = [coefficients(a, a + b) for a, b in zip(*x, strict=True)]
    for name in ("spearman_p", "pearson_p", "kendall_p"):
        assert np.mean([found[name] < 0.05 for found in chance]) == pytest.approx(0.05, abs=0.04)
        assert np.mean([found[name] < 0.05 for found in agreeing]) > 0.5


def test_a_constant_has_no_coefficient():
    found = coefficients(np.full(5, 3.0), np.arange(5.0))
    assert set(found) == {"spearman", "spearman_p", "spearman_interval", "pearson", "pearson_p", "kendall", "kendall_p"}
    assert set(found.values()) == {None}
