"""Who else can choose the ratios: hand-set rules and random search, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..configs import did_you_mean
from ..pruners.budget import Budget

Widths = NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """What an allocator may use.

    Attributes:
        budget: the layers and what the plan may cost; its `fill` spends it.
        reward: judges widths on the search images, the higher the better; only search allocators call it.
        curves: every layer's repair error by units kept, (width + 1,) each, see `Elimination`; computed when called.
        candidates: how many plans a search allocator may judge.
        rng: its randomness.
    """

    budget: Budget
    reward: Callable[[Widths], float]
    curves: Callable[[], list[NDArray[np.float64]]]
    candidates: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


@dataclass(frozen=True)
class Allocator:
    """A way to choose the sparsity of every layer.

    Attributes:
        name: in commands and files.
        allocate: (layers,) widths for an allocation.
        searches: whether it judges candidates (and so costs what a search costs).
    """

    name: str
    allocate: Callable[[Allocation], Widths]
    searches: bool


_ALLOCATORS: dict[str, Allocator] = {}


def register_allocator(
    name: str, *, searches: bool = False
) -> Callable[[Callable[[Allocation], Widths]], Callable[[Allocation], Widths]]:
    """Make an allocator known under a name."""

    def register(allocate: Callable[[Allocation], Widths]) -> Callable[[Allocation], Widths]:
        _ALLOCATORS[name] = Allocator(name, allocate, searches)
        return allocate

    return register


def allocators() -> list[str]:
    """The names there are."""
    return sorted(_ALLOCATORS)


def get_allocator(name: str) -> Allocator:
    """The allocator of that name.

    Raises:
        ValueError: there is none; the near miss is named.
    """
    if name not in _ALLOCATORS:
        raise ValueError(f"no allocator {name!r}, only {', '.join(allocators())}{did_you_mean(name, allocators())}")
    return _ALLOCATORS[name]


@register_allocator("uniform")
def uniform(allocation: Allocation) -> Widths:
    """Every layer the same sparsity."""
    return allocation.budget.fill(_widths(allocation))


@register_allocator("shallow")
def shallow(allocation: Allocation) -> Widths:
    """Early layers are pruned most: what is kept rises linearly with depth, threefold from first to last (AMC)."""
    return allocation.budget.fill(_widths(allocation) * _ramp(allocation))


@register_allocator("deep")
def deep(allocation: Allocation) -> Widths:
    """Late layers are pruned most: the mirror image of `shallow`."""
    return allocation.budget.fill(_widths(allocation) * _ramp(allocation)[::-1])


@register_allocator("threshold")
def threshold(allocation: Allocation) -> Widths:
    """One threshold on all error curves: every layer keeps as few channels as leave its repair error below it."""
    budget, curves = allocation.budget, allocation.curves()

    def below(level: float) -> Widths:
        kept = [int(np.argmax(curve <= level)) for curve in curves]  # the curves fall to 0
        return np.maximum(np.array(kept, dtype=np.int64), budget.least)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.cost(below(middle)) <= budget.limit else (middle, high)
    return budget.spend(below(high), below(low).astype(np.float64))


@register_allocator("random", searches=True)
def random_search(allocation: Allocation) -> Widths:
    """The best of so many random plans on the budget (EagleEye, Li et al., ECCV 2020)."""
    drawn = [random_plan(allocation) for _ in range(allocation.candidates)]
    rewards = [allocation.reward(widths) for widths in drawn]
    return drawn[int(np.argmax(rewards))]


def random_plan(allocation: Allocation) -> Widths:
    """One plan with sparsities drawn uniformly in [0, max_sparsity], scaled onto the budget."""
    dense = _widths(allocation)
    return allocation.budget.fill(
        dense * (1.0 - allocation.rng.uniform(0.0, allocation.budget.max_sparsity, len(dense)))
    )


def _widths(allocation: Allocation) -> NDArray[np.float64]:
    return allocation.budget.structure.widths.astype(np.float64)


def _ramp(allocation: Allocation) -> NDArray[np.float64]:
    return np.linspace(0.5, 1.5, len(allocation.budget.structure.layers))
