"""The registry of allocators, and what an allocator may use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from ...configs import Registry
from ...envs import Evaluation, RewardWeights
from ...pruners.budget import Budget
from ...pruners.context import Context
from ...pruners.structure import Kept


def _evaluate_nothing(plans: Sequence[Kept]) -> Iterable[Evaluation]:
    raise RuntimeError(f"{len(plans)} plans to be evaluated, and no one to do it: give the problem an `evaluate`")


@dataclass(frozen=True)
class SearchProblem:
    """What an allocator may use.

    Attributes:
        budget: the layers and what the plan may cost; its `fill` spends it.
        context: the dense network and the calibration images.
        evaluate: evaluates plans on the search images, in order and maybe some at a time; rules never call it.
        weights: of the terms by which plans are chosen.
        candidates: how many different plans a search allocator may have evaluated.
        rng: its randomness.
    """

    budget: Budget
    context: Context
    evaluate: Callable[[Sequence[Kept]], Iterable[Evaluation]] = _evaluate_nothing
    weights: RewardWeights = field(default_factory=RewardWeights)
    candidates: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def dense(self) -> NDArray[np.float64]:
        """(layers,) units of the dense network, real."""
        return self.budget.structure.units.astype(np.float64)


@dataclass(frozen=True)
class Allocator:
    """A way to choose the sparsity of every layer.

    Attributes:
        name: in commands and files.
        allocate: (layers,) kept for a problem.
        searches: whether it evaluates candidates (and so costs what a search costs).
        needs: the package it is made with, where that is an extra.
        methods: that it is for; none named stands for all.
    """

    name: str
    allocate: Callable[[SearchProblem], Kept]
    searches: bool
    needs: str | None = None
    methods: frozenset[str] = frozenset()


def _adopted(name: str, allocate: Callable[[SearchProblem], Kept], known: Mapping[str, Allocator]) -> Allocator:
    """As its `register_allocator` says, else a rule."""
    for registered in known.values():
        if registered.allocate is allocate:
            return replace(registered, name=name)
    return Allocator(name, allocate, searches=False)


ALLOCATORS: Registry[Allocator] = Registry("allocator", _adopted)


def register_allocator(
    name: str, *, searches: bool = False, needs: str | None = None, methods: Collection[str] = ()
) -> Callable[[Callable[[SearchProblem], Kept]], Callable[[SearchProblem], Kept]]:
    """Make an allocator known under a name; see `Allocator`."""

    def register(allocate: Callable[[SearchProblem], Kept]) -> Callable[[SearchProblem], Kept]:
        ALLOCATORS.register(name)(Allocator(name, allocate, searches, needs, frozenset(methods)))
        return allocate

    return register


def get_allocator(name: str, method: str | None = None) -> Allocator:
    """The allocator of that name.

    Args:
        name: of the allocator.
        method: that it is to choose for, if that is known yet.

    Raises:
        ValueError: there is none, and the near miss is named; or it is not for this method.
        ImportError: it is made with a package that is not installed; the extra is named.
    """
    found = ALLOCATORS[name]
    if found.needs is not None and find_spec(found.needs) is None:
        raise ImportError(f"allocator {name} needs {found.needs}: pip install 'secateur[search]'")
    if method is not None and found.methods and method not in found.methods:
        raise ValueError(
            f"allocator {name} is for {' and '.join(sorted(found.methods))}, not for {method}: leave it out"
        )
    return found
