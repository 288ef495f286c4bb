"""Searches: evaluate candidates on the search images and keep the best, each at the same number of evaluated plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from ...envs import Evaluation
from ...pruners.budget import Budget
from ...pruners.loss_model import LossModel, best_steps
from ...pruners.structure import Kept
from .ranks import knapsack
from .registry import SearchProblem, register_allocator

TOGETHER = 1_024  # random plans that are drawn before the first of them is evaluated: enough for any number of workers
PATIENCE = 200  # plans known already that a search may propose in a row; then there is nothing new where it looks
FIRST_SHARE, LAST_SHARE = 0.5, 0.05  # of a layer's channels that a hill climb moves at most, first and last
FIRST_MISTAKE, LAST_MISTAKE = 0.5, 0.16  # standard deviation of a factor's logarithm, first and last
SPREAD = 0.2  # first standard deviation of the evolved sparsities


@dataclass
class Evaluated:
    """The plans of one search. A plan that comes again costs nothing and is not evaluated again.

    Attributes:
        problem: who evaluates, so many different plans.
        evaluations: of the plans evaluated so far, by kept.
        asked: how many there are, with those that are being evaluated.
        repeats: how many plans in a row were known already.
    """

    problem: SearchProblem
    evaluations: dict[tuple[int, ...], Evaluation] = field(default_factory=dict)
    asked: int = 0
    repeats: int = 0

    def __call__(self, plans: Iterable[Kept]) -> list[float]:
        """The qualities of plans evaluated together; only of the first ones, where the search ends among them."""
        taken: list[tuple[int, ...]] = []
        new: dict[tuple[int, ...], Kept] = {}
        for kept in plans:
            if self.over:
                break
            taken.append(tuple(kept.tolist()))
            self.repeats += 1
            if taken[-1] not in self.evaluations and taken[-1] not in new:
                new[taken[-1]] = kept
                self.asked, self.repeats = self.asked + 1, 0
        self.evaluations.update(zip(new, self.problem.evaluate(list(new.values())), strict=True))
        return [self.quality(key) for key in taken]

    def quality(self, kept: tuple[int, ...]) -> float:
        """Of a plan that was evaluated."""
        return self.problem.weights.quality(self.evaluations[kept])

    @property
    def over(self) -> bool:
        """Whether all candidates were asked for, or nothing new has been proposed for long."""
        return self.asked >= self.problem.candidates or self.repeats >= PATIENCE

    @property
    def progress(self) -> float:
        """The fraction of the candidates that was evaluated."""
        return self.asked / self.problem.candidates

    @property
    def best(self) -> Kept:
        """The plan of the highest quality, the first of equals."""
        return np.array(max(self.evaluations, key=self.quality), dtype=np.int64)


@register_allocator("random", searches=True)
def random_search(problem: SearchProblem) -> Kept:
    """The best of so many random plans on the budget (EagleEye, Li et al., ECCV 2020)."""
    evaluated = Evaluated(problem)
    while not evaluated.over:
        evaluated(random_plan(problem) for _ in range(TOGETHER))
    return evaluated.best


def random_plan(problem: SearchProblem) -> Kept:
    """One plan with sparsities drawn uniformly in [0, max_sparsity], scaled onto the budget."""
    budget, dense = problem.budget, problem.dense
    return budget.fill(dense * (1.0 - problem.rng.uniform(0.0, budget.max_sparsity, len(dense))))


def random_plans(problem: SearchProblem, count: int) -> list[Kept]:
    """So many different random plans, in the order drawn.

    Raises:
        ValueError: there are not so many on the budget, or they are too rare to come up.
    """
    drawn: dict[tuple[int, ...], Kept] = {}
    repeats = 0
    while len(drawn) < count:
        plan = random_plan(problem)
        repeats = repeats + 1 if tuple(plan.tolist()) in drawn else 0
        drawn.setdefault(tuple(plan.tolist()), plan)
        if repeats >= PATIENCE:
            raise ValueError(f"{count} random plans asked, but only {len(drawn)} differ on this budget: ask for fewer")
    return list(drawn.values())


@register_allocator("hill_climb", searches=True)
def hill_climb(problem: SearchProblem) -> Kept:
    """From the `knapsack` plan: move units between two layers on the budget, keep what raises the quality.

    A move takes a random number of units from one layer; the most it may take shrinks, over the search, from half
    of the layer to a twentieth.
    """
    budget, rng = problem.budget, problem.rng
    evaluated = Evaluated(problem)
    best = knapsack(problem)
    (quality,) = evaluated([best])
    while not evaluated.over:
        giver, taker = rng.integers(len(best), size=2)  # the same twice is a plan that is known
        share = FIRST_SHARE * (LAST_SHARE / FIRST_SHARE) ** evaluated.progress
        units = int(rng.integers(1, max(1, round(share * problem.dense[giver])) + 1))
        moved = move(budget, best, int(giver), int(taker), units)
        (found,) = evaluated([moved])
        if found > quality:
            best, quality = moved, found
    return best


def move(budget: Budget, kept: Kept, giver: int, taker: int, count: int) -> Kept:
    """Take units from one layer, give another what they paid for; what is left over goes back where it fits.

    The giver falls to its largest choice that is at least `count` units lower, or to the least that it may keep.
    """
    moved = kept.copy()
    lower = [choice for choice in budget.structure.layers[giver].choices if choice <= kept[giver] - count]
    moved[giver] = max(lower[-1] if lower else 0, budget.least[giver])
    wish = kept.astype(np.float64)
    wish[taker] = np.inf
    return budget.spend(moved, wish)


@register_allocator("evolution", searches=True, needs="cma")
def evolution(problem: SearchProblem) -> Kept:
    """CMA-ES (Hansen, 2016) over real sparsities, from 0 to the most of any layer, each decoded onto the budget.

    The first mean is the `knapsack` plan, which is evaluated first.
    """
    import cma  # an extra, and seconds to import

    budget, dense = problem.budget, problem.dense
    evaluated = Evaluated(problem)
    start, most = knapsack(problem), float((1.0 - budget.least / dense).max())
    evaluated([start])
    strategy = cma.CMAEvolutionStrategy(
        1.0 - start / dense,
        SPREAD * most,
        {
            "bounds": [0.0, most],
            "randn": lambda *shape: problem.rng.standard_normal(shape),
            "seed": np.nan,  # leaves numpy's global generator alone
            "verbose": -9,
        },
    )
    while not evaluated.over:
        points = strategy.ask()
        losses = [-quality for quality in evaluated([budget.fill(dense * (1.0 - point)) for point in points])]
        if len(losses) == len(points):
            strategy.tell(points, losses)
    return evaluated.best


@register_allocator("adaptive_knapsack", searches=True)
def adaptive_knapsack(problem: SearchProblem) -> Kept:
    """The `knapsack` plan of a loss model that is fitted anew to every plan evaluated (`LossModel.fitted`).

    Every plan is the model's own with all layers' losses mistaken by random factors; the mistakes shrink as the search
    goes on, and grow where they bring nothing new. It is what a training does without a policy.
    """
    budget, first = problem.budget, LossModel.of(problem.context)
    evaluated = Evaluated(problem)
    evaluated([knapsack(problem)])
    while not evaluated.over:
        distances = [evaluation.reconstruction_loss for evaluation in evaluated.evaluations.values()]
        losses = first.fitted([*evaluated.evaluations], distances)
        spread = FIRST_MISTAKE + evaluated.progress * (LAST_MISTAKE - FIRST_MISTAKE)
        spread *= 1.0 + evaluated.repeats / 10
        mistakes = np.exp(problem.rng.normal(0.0, spread, len(losses.factors)))
        evaluated([best_steps(budget, replace(losses, factors=losses.factors * mistakes).gains(budget))])
    return evaluated.best
