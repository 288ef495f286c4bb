"""The registry of allocators, and what an allocator may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from ...configs import did_you_mean
from ...envs import Evaluation, RewardWeights
from ...pruners.budget import Budget
from ...pruners.criteria import Context

Widths = NDArray[np.int64]


def _judge_nothing(plans: Sequence[Widths]) -> Iterable[Evaluation]:
    raise RuntimeError(f"{len(plans)} plans to be judged, and no one to judge them: give the allocation an `evaluate`")


@dataclass(frozen=True)
class Allocation:
    """What an allocator may use.

    Attributes:
        budget: the layers and what the plan may cost; its `fill` spends it.
        context: the dense network and the calibration images, as criteria see them.
        evaluate: judges plans on the search images, in order and maybe some at a time; rules never call it.
        reward: what a plan is paid for what was judged.
        candidates: how many different plans a search allocator may judge.
        rng: its randomness.
    """

    budget: Budget
    context: Context
    evaluate: Callable[[Sequence[Widths]], Iterable[Evaluation]] = _judge_nothing
    reward: RewardWeights = field(default_factory=RewardWeights)
    candidates: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def dense(self) -> NDArray[np.float64]:
        """(layers,) widths of the dense network, real."""
        return self.budget.structure.widths.astype(np.float64)


@dataclass(frozen=True)
class Allocator:
    """A way to choose the sparsity of every layer.

    Attributes:
        name: in commands and files.
        allocate: (layers,) widths for an allocation.
        searches: whether it judges candidates (and so costs what a search costs).
        needs: the package it is made with, where that is an extra.
    """

    name: str
    allocate: Callable[[Allocation], Widths]
    searches: bool
    needs: str | None = None


_ALLOCATORS: dict[str, Allocator] = {}


def register_allocator(
    name: str, *, searches: bool = False, needs: str | None = None
) -> Callable[[Callable[[Allocation], Widths]], Callable[[Allocation], Widths]]:
    """Make an allocator known under a name."""

    def register(allocate: Callable[[Allocation], Widths]) -> Callable[[Allocation], Widths]:
        _ALLOCATORS[name] = Allocator(name, allocate, searches, needs)
        return allocate

    return register


def allocators() -> list[str]:
    """The names there are."""
    return sorted(_ALLOCATORS)


def get_allocator(name: str) -> Allocator:
    """The allocator of that name.

    Raises:
        ValueError: there is none; the near miss is named.
        ImportError: it is made with a package that is not installed; the extra is named.
    """
    if name not in _ALLOCATORS:
        raise ValueError(f"no allocator {name!r}, only {', '.join(allocators())}{did_you_mean(name, allocators())}")
    found = _ALLOCATORS[name]
    if found.needs is not None and find_spec(found.needs) is None:
        raise ImportError(f"allocator {name} needs {found.needs}: pip install 'secateur[search]'")
    return found
