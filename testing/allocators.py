"""What every allocator must keep to; see `secateur.agents.allocators`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from ..agents import ALLOCATORS, Allocator, SearchProblem, get_allocator
from ..configs import CostKind
from ..configs.schema import LayersConfig
from ..envs import Evaluation
from ..pruners.budget import Budget
from ..pruners.context import Context
from ..pruners.structure import Floats, Kept, Structure
from .rules import check_rules, require
from .toys import global_random, toy_context

CANDIDATES = 6
FRACTIONS = (0.7, 0.45)
SHOWN = (  # method, and what its numbers of units are multiples of
    ("channels", 1),
    ("channels", 2),
    ("weights", 24),
)


def check_allocator(
    allocator: str | Allocator,
    context: Context | None = None,
    *,
    kind: CostKind = "flops",
    fractions: Sequence[float] = FRACTIONS,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> None:
    """Check an allocator against every rule of `ALLOCATOR_RULES`, on a toy network or on one of your own.

    Nothing is compressed: a formula with a known best plan stands in for the evaluator.

    Args:
        allocator: a registered one or its name.
        context: a dense network and its layers; none takes a toy's: by channels, by pairs of channels, by weights.
        kind: of the budget.
        fractions: the budgets; one that cannot be met becomes the tightest that can. Where nothing is evaluated, that
            one and the whole network are added.
        candidates: that a search may evaluate.
        seed: of its random numbers.

    Raises:
        AssertionError: a rule is broken; the message names it.
        ImportError: it is made with a package that is not installed.
    """
    name = allocator if isinstance(allocator, str) else allocator.name
    check_rules(f"allocator {name}", {"registered": _is_registered}, allocator, None)
    found = get_allocator(name)
    for shown in [context] if context is not None else _toys(found):
        structure = shown.structure
        tightest = structure.fraction(kind, Budget(structure, kind, 1.0).least)
        edges = () if found.searches else (1.0, tightest)
        for fraction in dict.fromkeys([*(max(tightest, f) for f in fractions), *edges]):
            case = Case(found, Budget(structure, kind, fraction), shown, candidates, seed)
            what = f"allocator {name}, {structure.method}, {kind} {fraction:.3g},"
            check_rules(what, ALLOCATOR_RULES, case, shown.model)
        case = Case(found, _several(structure, kind, fractions[0]), shown, candidates, seed)
        check_rules(f"allocator {name}, {structure.method}, several budgets,", ALLOCATOR_RULES, case, shown.model)


def _several(structure: Structure, kind: CostKind, fraction: float) -> Budget:
    """One of the kind, and one of each other, half of the way to the least."""
    least = Budget(structure, kind, 1.0).least
    tight = {name: (1.0 + structure.fraction(name, least)) / 2 for name in structure.costs}
    return Budget(structure, kind, max(fraction, tight.pop(kind)), besides=cast(dict[CostKind, float], tight))


class Formula:
    """Evaluates plans by a formula, and remembers which: every layer's loss is a parabola, some layers lose more.

    Args:
        budget: the layers.
    """

    def __init__(self, budget: Budget):
        self.asked: list[tuple[int, ...]] = []
        self._budget = budget
        self._slopes: Floats = np.random.default_rng(1).uniform(0.2, 2.0, len(budget.structure.layers))

    def __call__(self, plans: Sequence[Kept]) -> Iterator[Evaluation]:
        """In order, one after another."""
        for kept in plans:
            self.asked.append(tuple(int(count) for count in kept))
            structure = self._budget.structure
            loss = float(self._slopes @ (1.0 - kept / structure.units) ** 2 / len(kept))
            fractions = structure.fractions(kept)
            yield Evaluation(100.0 * max(0.0, 1.0 - loss), loss, fractions["flops"], fractions["params"])


@dataclass(frozen=True)
class Case:
    """One allocator on one budget.

    Attributes:
        allocator: that is checked.
        budget: the plan may cost.
        context: the network.
        candidates: a search may evaluate.
        seed: of its random numbers.
        found: by global seed: the plan, and the plans that were evaluated for it.
    """

    allocator: Allocator
    budget: Budget
    context: Context
    candidates: int
    seed: int
    found: dict[int, tuple[Kept, list[tuple[int, ...]]]] = field(default_factory=dict)

    def plan(self, world: int = 1) -> tuple[Kept, list[tuple[int, ...]]]:
        """The plan, and those that were evaluated; `world` seeds the generators that an allocator must not use."""
        if world not in self.found:
            formula = Formula(self.budget)
            problem = SearchProblem(
                self.budget,
                self.context,
                formula,
                candidates=self.candidates,
                rng=np.random.default_rng(self.seed),
            )
            with global_random(world):
                self.found[world] = self.allocator.allocate(problem), formula.asked
        return self.found[world]

    def all_plans(self) -> list[list[int]]:
        """The plan, and every one that was evaluated for it."""
        kept, asked = self.plan()
        return [kept.tolist(), *map(list, asked)]


def _toys(allocator: Allocator) -> list[Context]:
    """A toy network's layers by every method that the allocator is for, where the suite knows it."""
    return [
        toy_context(method, config=LayersConfig(round_to=multiple))
        for method, multiple in SHOWN
        if not allocator.methods or method in allocator.methods
    ]


def _is_registered(allocator: str | Allocator) -> None:
    name = allocator if isinstance(allocator, str) else allocator.name
    require(name in ALLOCATORS, f"ALLOCATORS knows no {name!r}: decorate it with @register_allocator({name!r})")
    same = isinstance(allocator, str) or ALLOCATORS[name] is allocator
    require(same, f"ALLOCATORS holds another one under {name!r}")


def _is_an_array(case: Case) -> None:
    kept, _ = case.plan()
    layers = len(case.budget.structure.layers)
    require(
        isinstance(kept, np.ndarray) and np.issubdtype(kept.dtype, np.integer), f"it returned {kept!r}, no integers"
    )
    require(kept.shape == (layers,), f"shape {kept.shape} for {layers} layers")


def _keeps_choices(case: Case) -> None:
    budget = case.budget
    for plan in case.all_plans():
        for layer, count, low, high in zip(budget.structure.layers, plan, budget.least, budget.most, strict=True):
            require(int(count) in layer.choices, f"{layer.name}: {count} is no choice of {layer.choices}")
            require(low <= count <= high, f"{layer.name}: {count} is outside the budget's {low} … {high}")


def _stays_on_the_budget(case: Case) -> None:
    for plan in case.all_plans():
        cost = case.budget.cost(plan)
        require(cost <= case.budget.limit, f"{plan} costs {cost}, the limit is {case.budget.limit:g}")


def _spends_the_budget(case: Case) -> None:
    kept, _ = case.plan()
    budget = case.budget
    for index, layer in enumerate(budget.structure.layers):
        more = kept.copy()
        more[index] = next((n for n in layer.choices if n > kept[index]), 0)
        fits = kept[index] < more[index] <= budget.most[index] and budget.cost(more) <= budget.limit
        require(not fits, f"{kept.tolist()}: {layer.name} could keep {more[index]}: end with budget.spend(kept, wish)")


def _evaluates_as_told(case: Case) -> None:
    _, asked = case.plan()
    different = len(set(asked))
    if not case.allocator.searches:
        require(not asked, f"it had {different} plans evaluated: register it with searches=True")
    most = case.candidates
    require(different <= most, f"it had {different} different plans evaluated, {most} were allowed")
    require(len(asked) == different, f"it had {len(asked) - different} plans evaluated again")


def _follows_its_seed(case: Case) -> None:
    (one, asked), (other, again) = case.plan(1), case.plan(2)
    same = np.array_equal(one, other) and asked == again
    require(same, f"{one.tolist()}, and with the same seed {other.tolist()}: draw from problem.rng alone")


ALLOCATOR_RULES: Mapping[str, Callable[[Case], None]] = {
    "plan": _is_an_array,
    "choices": _keeps_choices,
    "budget": _stays_on_the_budget,
    "spent": _spends_the_budget,
    "candidates": _evaluates_as_told,
    "deterministic": _follows_its_seed,
}
