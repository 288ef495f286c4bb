"""Whether two measurements of the same things agree: correlation coefficients, and how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

RESAMPLES = 2000


def coefficients(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    """Spearman, Pearson and Kendall (tau-b) of two (n,) arrays, each with its two-sided p-value.

    Spearman comes with its 95 % percentile interval over `RESAMPLES` bootstrap samples of the pairs, the same samples
    for every pair of arrays of that length. All are none where an array is constant.
    """
    tests = {"spearman": spearmanr, "pearson": pearsonr, "kendall": kendalltau}
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return {**dict.fromkeys(tests), **{f"{name}_p": None for name in tests}, "spearman_interval": None}
    found: dict[str, Any] = {}
    for name, test in tests.items():
        result = test(x, y)
        found |= {name: float(result.statistic), f"{name}_p": float(result.pvalue)}
    return {**found, "spearman_interval": _spearman_interval(x, y)}


def _spearman_interval(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[float]:
    sample = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    a, b = (rankdata(values[sample], axis=1) - (len(x) + 1) / 2 for values in (x, y))  # ranks less their mean
    spread = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    rho = (a * b).sum(1)[spread > 0] / spread[spread > 0]  # a sample of one pair only has no order
    low, high = np.quantile(rho, [0.025, 0.975])
    return [float(low), float(high)]
