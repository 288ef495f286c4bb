"""What a plan is predicted to lose: a curve a layer, corrected by what judged plans really lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from sklearn.isotonic import isotonic_regression

from .budget import Budget
from .criteria import Context
from .influence import loss_curves

Curves = Sequence[NDArray[np.float64]]

GRID = 512  # prices between a network's dearest unit and its cheapest
FAR = 20.0  # from the median gain, in the logarithm: as good as dead, or as good as free
TIE = 1e-2  # in the logarithm, over a layer: units of equal gain go one after the other
LEAST_DISTANCE = 1e-6  # of a plan that loses nothing
LEAST_FACTOR = 0.1  # of the common one: no layer is free, whatever a few plans say
TRUST = 1.0  # in the curves as predicted, against the plans judged: a ridge, in units of the curves' own spread


@dataclass(frozen=True)
class LossModel:
    """Σ over layers of factor · curve(width).

    A plan's loss is the distance of its logits from the dense network's, which tells of small differences that accuracy
    on a thousand images drowns in noise. The curves (`secateur.pruners.influence.loss_curves`) come from the dense
    network alone, to first order. The factors are what judged plans teach: least squares of their distances on the
    curves, non-negative, with a ridge towards one common factor, so that one plan moves them a little and many decide.

    Attributes:
        curves: for every layer by units kept, (width + 1,), falling.
        factors: (layers,) ≥ 0.
    """

    curves: Curves
    factors: NDArray[np.float64]

    @classmethod
    def of(cls, context: Context) -> LossModel:
        """As predicted from the dense network, no plan judged."""
        return cls.from_curves(loss_curves(context))

    @classmethod
    def from_curves(cls, curves: Curves) -> LossModel:
        """All factors 1."""
        return cls(curves, np.ones(len(curves)))

    @classmethod
    def even(cls, budget: Budget) -> LossModel:
        """Curves for which the uniform plan is the best: where nothing is known of a network."""
        kept = [np.arange(width + 1) / width for width in budget.structure.widths]
        shares = np.array([prices.sum() for prices in unit_prices(budget)])
        return cls.from_curves([share * (1.0 - k) ** 2 for share, k in zip(shares / shares.sum(), kept, strict=True)])

    def terms(self, plans: ArrayLike) -> NDArray[np.float64]:
        """(…, layers) the curves at widths (…, layers), before the factors."""
        widths = np.asarray(plans, dtype=np.int64)
        return np.stack([curve[widths[..., i]] for i, curve in enumerate(self.curves)], axis=-1)

    def predict(self, plans: ArrayLike) -> NDArray[np.float64]:
        """(…) the loss of plans of widths (…, layers)."""
        return np.asarray(self.terms(plans) @ self.factors)

    def fitted(self, plans: ArrayLike, distances: ArrayLike) -> LossModel:
        """The same curves, with factors that explain what plans lost; errors count relative to the loss.

        Args:
            plans: (plans, layers) widths.
            distances: (plans,) of their logits from the dense network's, ≥ 0.
        """
        loss = np.asarray(distances, dtype=np.float64).clip(min=LEAST_DISTANCE)
        terms = self.terms(plans) / loss[:, None]
        whole = terms.sum(axis=1)
        common = float(whole.sum() / max(float(whole @ whole), np.finfo(float).tiny))
        ridge = TRUST * float(terms.std(axis=0).mean())
        if ridge == 0.0:  # one plan, or all alike
            return replace(self, factors=np.full(len(self.curves), common))
        matrix = np.vstack([terms, ridge * np.eye(len(self.curves))])
        factors, _ = nnls(matrix, np.concatenate([np.ones(len(loss)), np.full(len(self.curves), ridge * common)]))
        return replace(self, factors=np.maximum(factors, LEAST_FACTOR * common))

    def gains(self, budget: Budget) -> list[NDArray[np.float64]]:
        """For every layer what its units gain for their price, (width,), falling: the k-th is the k-th unit's.

        The gain is the fall of the largest function below the curve that is convex in the cost, so that a unit never
        counts for more than the one before (and the units of one of latency's stairs stand or fall together); taking
        the best gain for the price is then the optimum of the relaxed problem of least loss on the budget (a knapsack;
        Dantzig 1957).
        """
        return [
            -factor * isotonic_regression(np.diff(curve) / prices, sample_weight=prices)
            for factor, curve, prices in zip(self.factors, self.curves, unit_prices(budget), strict=True)
        ]


def unit_prices(budget: Budget) -> list[NDArray[np.float64]]:
    """For every layer, (width,), what its units add to the cost one after the other, where all others are whole."""
    return [costs.clip(min=1e-12 * budget.limit) for costs in budget.structure.unit_costs(budget.kind)]


class Prices:
    """The plans of least predicted loss, one for every price of a unit of cost.

    A layer keeps the units that gain more than the price. The lower the price, the wider the plan; a budget has the
    price at which it is spent.

    Args:
        losses: the model.
        budget: what is spent.
    """

    def __init__(self, losses: LossModel, budget: Budget):
        self.budget = budget
        gains = losses.gains(budget)
        middle = np.median(np.log(np.concatenate(gains).clip(min=np.finfo(float).tiny)))
        logs = [
            np.log(gain.clip(min=np.finfo(float).tiny)).clip(middle - FAR, middle + FAR)
            - np.linspace(0, TIE, len(gain))
            for gain in gains
        ]
        high, low = max(float(log[0]) for log in logs), min(float(log[-1]) for log in logs)
        self._step = (high - low) / (GRID - 1)
        grid = np.linspace(high, low, GRID)
        self._table = np.stack(
            [np.interp(-grid, -log, np.arange(1, len(log) + 1), left=0.0) for log in logs],
            axis=1,
        ).clip(budget.least, budget.structure.widths)

    def widths(self, position: float) -> NDArray[np.float64]:
        """(layers,) real widths at a price, given as its position on the grid."""
        position = float(np.clip(position, 0.0, GRID - 1.0))
        below = min(int(position), GRID - 2)
        part = position - below
        return np.asarray((1.0 - part) * self._table[below] + part * self._table[below + 1])

    def position(self, chosen: Sequence[int]) -> float:
        """The price at which the layers to come spend what those already chosen have left, on the grid."""
        walked = len(chosen)
        widths = np.empty(self._table.shape[1])
        widths[:walked] = chosen
        low, high = 0.0, GRID - 1.0
        for _ in range(20):
            middle = (low + high) / 2
            widths[walked:] = self.widths(middle)[walked:]
            fits = self.budget.structure.relaxed_cost(self.budget.kind, widths) <= self.budget.limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def dearer(self, position: float, factor: float) -> float:
        """The position of a price that is e^factor times as high."""
        return position - factor / self._step
