"""What was learnt from other networks, asked for a plan of one that was never seen: nothing is evaluated."""

from __future__ import annotations

from ...pruners.loss_model import best_steps
from ...pruners.structure import Kept
from ..correction import shipped
from .registry import SearchProblem, register_allocator


@register_allocator("policy", methods=["channels"])
def policy(problem: SearchProblem) -> Kept:
    """`knapsack` of a loss model that is corrected by what a population of other networks has taught (`Correction`)."""
    losses = shipped().corrected(problem.context, problem.budget)
    return best_steps(problem.budget, losses.gains(problem.budget))
