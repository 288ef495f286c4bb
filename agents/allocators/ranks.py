"""Global rankings: the units of all layers compete for one budget.

Scores of different layers are on different scales; each rule says how it makes them comparable. As published, the
scores say nothing of what a unit costs; `knapsack` divides by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...pruners.budget import Budget
from ...pruners.criteria import scores
from ...pruners.loss_model import LossModel
from .registry import Allocation, Widths, register_allocator

Scores = NDArray[np.float64]


@register_allocator("lamp")
def lamp(allocation: Allocation) -> Widths:
    """By `lamp_scores` (Lee et al., ICLR 2021, eq. 2), with a unit's filters in the place of a weight."""
    context = allocation.context
    norms = [
        np.sum([filters.square().sum(1).cpu().numpy() for filters in context.filters(layer)], axis=0)
        for layer in context.structure.layers
    ]
    return best_units(allocation.budget, [lamp_scores(squares) for squares in norms])


@register_allocator("global_l1")
def global_l1(allocation: Allocation) -> Widths:
    """By the `l1` criterion over its mean in the layer.

    Behind a batch norm the scale of a layer's weights means nothing, and filters of more inputs have larger norms:
    both cancel, and a unit counts by how far it stands out in its own layer.
    """
    return best_units(allocation.budget, [_over(s, s.mean()) for s in scores(allocation.context, "l1")])


@register_allocator("global_taylor")
def global_taylor(allocation: Allocation) -> Widths:
    """By the `taylor` criterion over its Euclidean norm in the layer (Molchanov et al., ICLR 2017, sec. 2.2)."""
    return best_units(allocation.budget, [_over(s, np.linalg.norm(s)) for s in scores(allocation.context, "taylor")])


@register_allocator("knapsack")
def knapsack(allocation: Allocation) -> Widths:
    """The least predicted loss on the budget, `LossModel`: units by what they gain, over what they cost.

    One small forward pass a layer, and no candidate is judged.
    """
    return best_units(allocation.budget, LossModel.of(allocation.context).gains(allocation.budget))


def lamp_scores(squares: Scores) -> Scores:
    """A unit's squared norm over the sum of those not smaller, its own among them; 1 for the largest.

    Args:
        squares: (width,) squared norms of one layer's units.

    Returns:
        (width,) in [0, 1]; of equal units the first is taken to be the larger.
    """
    order = np.argsort(-squares, kind="stable")
    found = np.empty(len(squares))
    found[order] = _over(squares[order], np.cumsum(squares[order]))
    return found


def best_units(budget: Budget, ranked: Sequence[Scores]) -> Widths:
    """Widths that keep the best units over all layers until not one more fits the budget.

    From the best down, every unit that still fits is kept; every layer has its `budget.least` best ones in any case.

    Args:
        budget: what may be spent.
        ranked: every layer's scores, (width,), comparable between layers.
    """
    widths = budget.least.copy()
    contested = [np.sort(s)[::-1][kept:] for s, kept in zip(ranked, widths, strict=True)]
    layers = np.repeat(np.arange(len(widths)), [len(s) for s in contested])
    for layer in layers[np.argsort(-np.concatenate(contested), kind="stable")]:
        widths[layer] += 1
        if budget.cost(widths) > budget.limit:
            widths[layer] -= 1
    return widths


def _over(values: Scores, size: np.floating | Scores) -> Scores:
    """The quotient, 0 where all is 0."""
    return np.asarray(values / np.maximum(size, np.finfo(np.float64).tiny), dtype=np.float64)
