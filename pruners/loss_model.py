"""What a plan is predicted to lose: a curve a layer, corrected by what evaluated plans really lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, nnls

from .budget import Budget
from .context import Context
from .repair.sensitivity import sensitivities
from .structure import Floats, Kept, Layer, Structure

Curves = Sequence[Floats]

GRID = 512  # multipliers between a network's dearest unit and its cheapest
FAR = 20.0  # from the median gain, in the logarithm: as good as dead, or as good as free
ROUNDED = 0.05  # of a plan's loss: as much as the model errs; less is not worth another choice than the nearest
TIE = 1e-2  # in the logarithm, over a layer: units of equal gain go one after the other
LEAST_DISTANCE = 1e-6  # of a plan that loses nothing
LEAST_FACTOR = 0.1  # of the common one: no layer is free, whatever a few plans say
TRUST = 1.0  # in the curves as predicted, against the plans evaluated: a ridge, in units of the curves' own spread


def loss_curves(context: Context) -> list[Floats]:
    """For every layer by choice, (choices,): the logit distance that its cut alone brings, as predicted.

    The method's curve, times the layer's sensitivity. To first order the error that a layer leaves in its consumers'
    output passes through the rest of the network linearly, so that the squared distance is proportional to it; and the
    errors of different layers, being all but uncorrelated, add up. Where a layer has several `probes`, the distance for
    a lost output is what was measured there, and straight in between in the logarithm of what is lost. Where nothing is
    kept of a layer its branch is gone, too far for a first order: this distance is measured.
    """
    found = []
    for told, curve in zip(sensitivities(context), context.method.curves(context), strict=True):
        lost, factors = told["lost"].numpy(), told["factor"].numpy()
        along = np.interp(np.log(curve.clip(min=1e-12)), np.log(lost.clip(min=1e-12)), factors)
        losses = np.minimum.accumulate(along * curve)
        if "none" in told:
            losses = np.array([max(float(told["none"]), losses[1]), *losses[1:]])
        found.append(losses)
    return found


@dataclass(frozen=True)
class LossModel:
    """Σ over layers of factor · curve(choice).

    A plan's loss is the distance of its logits from the dense network's, which tells of small differences that accuracy
    on a thousand images drowns in noise. The curves (`loss_curves`) come from the dense network alone, to first order.
    The factors are what evaluated plans teach: least squares of their distances on the curves, non-negative, with a
    ridge towards one common factor, so that one plan moves them a little and many decide.

    Attributes:
        structure: the layers, with their choices.
        curves: for every layer, (choices,), falling.
        factors: (layers,) ≥ 0.
    """

    structure: Structure
    curves: Curves
    factors: Floats

    @classmethod
    def of(cls, context: Context) -> LossModel:
        """As predicted from the dense network, no plan evaluated."""
        return cls.from_curves(context.structure, loss_curves(context))

    @classmethod
    def from_curves(cls, structure: Structure, curves: Curves) -> LossModel:
        """All factors 1."""
        return cls(structure, curves, np.ones(len(curves)))

    @classmethod
    def even(cls, budget: Budget) -> LossModel:
        """Curves for which the uniform plan is the best: where nothing is known of a network."""
        costs = budget.choice_costs()
        shares = np.array([cost[-1] - cost[0] + np.finfo(float).tiny for cost in costs])
        curves = [
            share * (1.0 - layer.levels / layer.units) ** 2
            for share, layer in zip(shares / shares.sum(), budget.structure.layers, strict=True)
        ]
        return cls.from_curves(budget.structure, curves)

    def terms(self, plans: ArrayLike) -> Floats:
        """(…, layers) the curves where (…, layers) units are kept, before the factors; straight between choices."""
        kept = np.asarray(plans, dtype=np.float64)
        pairs = zip(self.structure.layers, self.curves, strict=True)
        columns = [np.interp(kept[..., i], layer.levels, curve) for i, (layer, curve) in enumerate(pairs)]
        return np.stack(columns, axis=-1)

    def predict(self, plans: ArrayLike) -> Floats:
        """(…) the loss of plans that keep (…, layers) units."""
        return np.asarray(self.terms(plans) @ self.factors)

    def fitted(self, plans: ArrayLike, distances: ArrayLike) -> LossModel:
        """The same curves, with factors that explain what plans lost; errors count relative to the loss.

        Args:
            plans: (plans, layers) units kept.
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

    def gains(self, budget: Budget) -> list[Floats]:
        """For every layer what each step from one choice to the next gains for its cost, (choices − 1,), falling.

        The gain is the fall of the largest function below the curve that is convex in the cost, so that a step never
        counts for more than the one before (and the steps of one of latency's stairs stand or fall together); taking
        the best gain for the cost is then the optimum of the relaxed problem of least loss on the budget (a knapsack;
        Dantzig 1957). Of several budgets a step costs that mix of them whose best steps are predicted to lose least:
        where one of them binds, that one.
        """
        if not budget.besides:
            return self._gains(budget)
        mixes = [self._gains(mix) for mix in budget.mixes]
        return min(mixes, key=lambda gains: float(self.predict(best_steps(budget, gains))))

    def _gains(self, priced: Budget) -> list[Floats]:
        gains = [
            -factor * isotonic_regression(np.diff(curve) / costs, weights=costs).x if len(costs) else costs
            for factor, curve, costs in zip(self.factors, self.curves, step_costs(priced), strict=True)
        ]
        return in_turn(priced, gains) if self.structure.in_turn else gains


def step_costs(budget: Budget) -> list[Floats]:
    """For every layer, (choices − 1,), what each step to the next choice adds to the cost, the other layers whole."""
    costs = budget.choice_costs()
    return [np.diff(cost).clip(min=1e-12 * budget.limit) for cost in costs]


def in_turn(budget: Budget, gains: Sequence[Floats]) -> list[Floats]:
    """What each step gains for what it saves when its turn comes, (choices − 1,) a layer: `Structure.in_turn`.

    The steps are taken down from the dense network, those first that gain least. A layer's steps save the same part of
    what they save of the dense network, all of them: true where costs are products of what the layers keep. What is
    left gets cheaper on the way, so that its gains rise, and the best steps on any budget are those not yet taken.

    Args:
        budget: what a step saves.
        gains: the same of the dense network, falling.
    """
    layers, found = budget.structure.layers, [np.zeros_like(gain) for gain in gains]
    left = np.array([len(gain) for gain in gains])
    kept, part, reached = budget.structure.units.copy(), np.ones(len(layers)), 0.0
    costs = budget.choice_costs()
    together = max(1, int(left.sum()) // GRID)
    while left.any():
        now = [gain[:n] / share for gain, n, share in zip(gains, left, part, strict=True)]
        pool = np.concatenate(now)
        worst = float(np.partition(pool, min(together, len(pool)) - 1)[min(together, len(pool)) - 1])
        for i, gain in enumerate(now):
            stay = int(np.searchsorted(-gain, -worst))  # those that gain more
            found[i][stay : left[i]] = np.maximum(gain[stay:], reached)
            left[i], kept[i] = stay, layers[i].levels[stay]
        reached = max(reached, worst)
        lowest = np.tile(kept, (len(layers) + 1, 1))
        np.fill_diagonal(lowest, [layer.choices[0] for layer in layers])
        saved = budget.costs_together(lowest)
        dense = np.array([cost[n] - cost[0] for cost, n in zip(costs, left, strict=True)])
        part = np.divide(saved[-1] - saved[:-1], dense, out=np.ones(len(layers)), where=dense > 0.0)
        part = part.clip(min=1e-12)
    return found


class Lagrangian:
    """The plans of least predicted loss, one for every Lagrange multiplier λ: the loss that a unit of cost must save.

    A layer takes the steps that gain more than λ. The lower λ, the more is kept; a budget has the λ at which it is
    spent. λ is handled as its position on a grid that is even in its logarithm, from the highest down.

    Args:
        losses: the model.
        budget: what is spent.
    """

    def __init__(self, losses: LossModel, budget: Budget):
        self.losses = losses
        self.budget = budget
        tiny = np.finfo(float).tiny
        gains = losses.gains(budget)
        middle = np.median(np.log(np.concatenate(gains).clip(min=tiny)))
        logs = [
            np.log(gain.clip(min=tiny)).clip(middle - FAR, middle + FAR) - np.linspace(0, TIE, len(gain))
            for gain in gains
        ]
        # the first choice of a layer lies as far above its first step as its steps lie from each other
        points = [np.insert(log, 0, log[0] + TIE + (log[0] - log[-1]) / len(log)) for log in logs if len(log)]
        high, low = max(float(log[0]) for log in points), min(float(log[-1]) for log in points)
        self._step = max(high - low, TIE) / (GRID - 1)
        grid = np.linspace(high, low, GRID)
        found = iter(points)
        columns = [
            np.interp(-grid, -next(found), layer.levels) if len(log) else np.full(GRID, layer.units)
            for log, layer in zip(logs, budget.structure.layers, strict=True)
        ]
        self._table = np.stack(columns, axis=1).clip(budget.least, budget.most)

    def kept(self, position: float) -> Floats:
        """(layers,) real numbers of units kept at a multiplier, given as its position on the grid."""
        position = float(np.clip(position, 0.0, GRID - 1.0))
        below = min(int(position), GRID - 2)
        part = position - below
        return np.asarray((1.0 - part) * self._table[below] + part * self._table[below + 1])

    def position(self, chosen: Sequence[int]) -> float:
        """The multiplier at which the layers to come spend what those already chosen have left, on the grid."""
        walked = len(chosen)
        kept = np.empty(self._table.shape[1])
        kept[:walked] = chosen
        low, high = 0.0, GRID - 1.0
        for _ in range(20):
            middle = (low + high) / 2
            kept[walked:] = self.kept(middle)[walked:]
            fits = self.budget.relaxed_cost(kept) <= self.budget.limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def raised(self, position: float, exponent: float) -> float:
        """The position of a multiplier that is e^exponent times as high."""
        return position - exponent / self._step

    def choose(self, chosen: Sequence[int], position: float, bounds: tuple[int, int], exponent: float = 0.0) -> int:
        """The next layer's choice, its own multiplier being e^exponent times as high as that of the others.

        The nearest to what is proposed; but where with the one below or above it the plan is predicted to lose less, by
        more than `ROUNDED`, that one. So no layer is rounded up, or given more than is proposed, at the cost of one
        behind it that needs next to nothing, but needs that.

        Args:
            chosen: units kept by the layers walked so far.
            position: of the others' multiplier; `position(chosen)` spends the budget.
            bounds: the least and the most that the layer may keep, choices of it; see `Budget.bounds_at`.
            exponent: above 0 less is kept; the layer's own loss counts e^-exponent times.
        """
        t, (low, high) = len(chosen), bounds
        structure = self.budget.structure
        wish = float(self.kept(self.raised(position, exponent))[t])
        nearest = int(np.clip(structure.snap(t, wish), low, high))
        at, levels = structure.layers[t].choices.index(nearest), structure.layers[t].choices
        near = [n for n in levels[max(0, at - 1) : at + 2] if low <= n <= high]
        if len(near) > 1:
            lost = {n: self._lost([*chosen, n], exponent) for n in near}
            best = min(near, key=lost.__getitem__)
            nearest = best if lost[best] < (1.0 - ROUNDED) * lost[nearest] else nearest
        return min(self.budget.widen(chosen, nearest), high)

    def _lost(self, chosen: Sequence[int], exponent: float) -> float:
        """What is predicted to be lost if the layers behind the last one chosen spend what is left."""
        wish = self.kept(self.position(chosen))
        kept = self.budget.floor(wish)
        wish[: len(chosen)] = kept[: len(chosen)] = chosen
        kept = self.budget.spend(kept, wish, len(chosen))
        lost = self.losses.factors * self.losses.terms(kept)
        lost[len(chosen) - 1] *= np.exp(-exponent)
        return float(lost.sum())


def best_steps(budget: Budget, ranked: Sequence[Floats]) -> Kept:
    """What is kept if the best steps over all layers are taken until not one more fits the budget.

    From the best down, every step to the next choice that still fits is taken; every layer has its `budget.least` in
    any case. A layer's steps are taken in its own order: a later one is never worth more than one before.

    Args:
        budget: what may be spent.
        ranked: every layer's scores, (choices − 1,), comparable between layers.
    """
    layers = budget.structure.layers
    at = [int(np.searchsorted(layer.levels, least)) for layer, least in zip(layers, budget.least, strict=True)]
    last = [int(np.searchsorted(layer.levels, most)) for layer, most in zip(layers, budget.most, strict=True)]
    contested = [
        np.minimum.accumulate(np.asarray(scores, dtype=np.float64))[first:end]
        for scores, first, end in zip(ranked, at, last, strict=True)
    ]
    owners = np.repeat(np.arange(len(layers)), [len(scores) for scores in contested])
    kept = budget.least.copy()
    for index in owners[np.argsort(-np.concatenate(contested), kind="stable")]:
        before, choices = kept[index], layers[index].choices
        if at[index] < 0:
            continue
        kept[index] = choices[at[index] + 1]
        if budget.cost(kept) <= budget.limit:
            at[index] += 1
        else:
            kept[index] = before
            at[index] = -1  # what is beyond costs more still
    return kept


def step_scores(layer: Layer, scores: Floats) -> Floats:
    """(choices − 1,) what each step to the next choice brings, of units (units,) that are worth so much: their mean."""
    falling = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    sums = np.concatenate([[0.0], np.cumsum(falling)])[layer.levels]
    return np.asarray(np.diff(sums) / np.diff(layer.levels))
