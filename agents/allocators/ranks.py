"""Global rankings: the units of all layers compete for one budget.

Floats of different layers are on different scales; each rule says how it makes them comparable. As published, the
scores say nothing of what a unit costs; `knapsack` divides by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...pruners.budget import Budget
from ...pruners.channels.criteria import scores
from ...pruners.loss_model import LossModel, best_steps, step_scores
from ...pruners.structure import Floats, Kept
from .registry import SearchProblem, register_allocator


@register_allocator("lamp")
def lamp(problem: SearchProblem) -> Kept:
    """By `lamp_scores` (Lee et al., ICLR 2021, eq. 2); with channels, a unit's filters in the place of a weight."""
    return best_units(problem.budget, [lamp_scores(squares) for squares in _sizes(problem)])


@register_allocator("global_magnitude")
def global_magnitude(problem: SearchProblem) -> Kept:
    """By the norm of a unit, one threshold for all layers: the plain global magnitude pruning of weights."""
    return best_units(problem.budget, [np.sqrt(squares) for squares in _sizes(problem)])


@register_allocator("global_l1", methods=["channels"])
def global_l1(problem: SearchProblem) -> Kept:
    """By the `l1` criterion over its mean in the layer.

    Behind a batch norm the scale of a layer's weights means nothing, and filters of more inputs have larger norms:
    both cancel, and a unit counts by how far it stands out in its own layer.
    """
    return best_units(problem.budget, [_over(s, s.mean()) for s in scores(problem.context, "l1")])


@register_allocator("global_taylor", methods=["channels"])
def global_taylor(problem: SearchProblem) -> Kept:
    """By the `taylor` criterion over its Euclidean norm in the layer (Molchanov et al., ICLR 2017, sec. 2.2)."""
    return best_units(problem.budget, [_over(s, np.linalg.norm(s)) for s in scores(problem.context, "taylor")])


@register_allocator("knapsack")
def knapsack(problem: SearchProblem) -> Kept:
    """The least predicted loss on the budget, `LossModel`: steps by what they gain, over what they cost.

    One small forward pass a layer, and no candidate is evaluated.
    """
    return best_steps(problem.budget, LossModel.of(problem.context).gains(problem.budget))


def lamp_scores(squares: Floats) -> Floats:
    """A unit's squared norm over the sum of those not smaller, its own among them; 1 for the largest.

    Args:
        squares: (units,) squared norms of one layer's units.

    Returns:
        (units,) in [0, 1]; of equal units the first is taken to be the larger.
    """
    order = np.argsort(-squares, kind="stable")
    found = np.empty(len(squares))
    found[order] = _over(squares[order], np.cumsum(squares[order]))
    return found


def best_units(budget: Budget, scored: Sequence[Floats]) -> Kept:
    """What is kept if the best units over all layers are, as far as the layers' choices and the budget allow.

    Args:
        budget: what may be spent.
        scored: every layer's scores, (units,), comparable between layers.
    """
    layers = budget.structure.layers
    return best_steps(budget, [step_scores(layer, s) for layer, s in zip(layers, scored, strict=True)])


def _sizes(problem: SearchProblem) -> list[Floats]:
    context = problem.context
    return [context.method.sizes(context, layer) for layer in context.structure.layers]


def _over(values: Floats, size: np.floating | Floats) -> Floats:
    """The quotient, 0 where all is 0."""
    return np.asarray(values / np.maximum(size, np.finfo(np.float64).tiny), dtype=np.float64)
