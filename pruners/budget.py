"""The budget: what a plan may cost, and what each step of the walk may still do to meet it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

from ..configs import CostKind
from ..configs.amounts import DIGITS, amount, told
from ..configs.registry import split
from .scope import sparsity_range
from .structure import Floats, Kept, PlanError, Structure


@dataclass(frozen=True)
class Budget:
    """The most a finished plan may cost, counted with whole units.

    A cost never falls where a layer keeps more, or the bisections here would be wrong; it may stand still. The largest
    of several such costs, each in units of its limit, is another one: so several budgets are one, and a plan within it
    meets all of them.

    Attributes:
        structure: the dense network's layers.
        kind: `flops`, `params`, `latency`, …: one of the structure's costs.
        fraction: of the dense network's cost, in (0, 1].
        max_sparsity: of any one layer, in (0, 1), but for one of a branch that goes altogether.
        bounds: least and most sparsity of layers by name or pattern (`layer4.*`); where several fit, the last counts.
        besides: further budgets that every plan meets as well, kind → fraction.
        prices: of several, what each counts for in the cost of a step, each in units of its limit: a surrogate
            constraint (Glover, 1965). All alike, where none are given.

    Raises:
        PlanError: even the strongest allowed compression costs more; the message says what can be reached. Or a bound
            that no choice lies within, or that fits no layer.
    """

    structure: Structure
    kind: CostKind
    fraction: float
    max_sparsity: float = 0.9
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    besides: Mapping[CostKind, float] = field(default_factory=dict)
    prices: Mapping[CostKind, float] = field(default_factory=dict)

    @classmethod
    def asked(
        cls,
        structure: Structure,
        budgets: Mapping[CostKind, float | str],
        max_sparsity: float = 0.9,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> Budget:
        """Of budgets as a config says them, kind → a fraction or an amount ("20M").

        Raises:
            PlanError: see `Budget`; or an amount that is more than the dense network's.
        """
        (kind, fraction), *others = ((kind, share(structure, kind, said)) for kind, said in budgets.items())
        return cls(structure, kind, fraction, max_sparsity, bounds or {}, dict(others))

    def __post_init__(self) -> None:
        if not 0.0 < self.max_sparsity < 1.0:
            raise PlanError(f"max_sparsity = {self.max_sparsity}: must lie in (0, 1)")
        for kind, fraction in self.fractions.items():
            if not 0.0 < fraction <= 1.0:
                raise PlanError(f"budget.{kind} = {fraction}: a fraction of the dense network in (0, 1]")
            least, whole = (
                self.structure.cost(counted(self.structure, kind), n) for n in (self.least, self.structure.units)
            )
            if least > _limit(fraction, whole):
                if least >= whole and (others := self._saved()):
                    raise PlanError(
                        f"budget.{kind} = {fraction:g}: nothing that method: {self.structure.method} may do changes "
                        f"it; budget {' or '.join(others)}"
                    )
                reachable = np.ceil(1e4 * least / whole) / 1e4
                trunks = ", or set layers.cut=all" if "channels" in split(self.structure.method) else ""
                raise PlanError(
                    f"budget.{kind} = {fraction:g} cannot be met: cutting every layer to {self.max_sparsity:g} still "
                    f"keeps {reachable:g}; ask for at least that ({told(kind, least, up=True)}, where "
                    f"{told(kind, fraction * whole)} was asked), or raise layers.max_sparsity{trunks}"
                )

    def _saved(self) -> list[str]:
        """The kinds of cost that the strongest allowed compression saves."""
        cost = self.structure.cost
        return [other for other in self.structure.costs if cost(other, self.least) < cost(other, self.structure.units)]

    @property
    def fractions(self) -> dict[CostKind, float]:
        """All budgets: kind → fraction."""
        return {self.kind: self.fraction, **self.besides}

    @property
    def each(self) -> list[Budget]:
        """Every one of them, as if it were alone."""
        return [replace(self, kind=kind, fraction=part, besides={}) for kind, part in self.fractions.items()]

    @property
    def mixes(self) -> list[Budget]:
        """The same budgets at every mix of prices in fourths, each alone among them."""
        found = (Counter(kinds) for kinds in combinations_with_replacement(self.fractions, 4))
        return [replace(self, prices=prices) for prices in found]

    @cached_property
    def limit(self) -> float:
        """The cost that must not be exceeded."""
        return _limit(self.fraction, self.structure.cost(self.kind, self.structure.units))

    @cached_property
    def _rates(self) -> dict[CostKind, float]:
        """What one of each kind is in the budget's own currency."""
        whole = self.structure.units
        others = {kind: self.limit / _limit(f, self.structure.cost(kind, whole)) for kind, f in self.besides.items()}
        return {self.kind: 1, **others}

    @cached_property
    def _priced(self) -> dict[CostKind, float]:
        """The same at their prices, without those that count for nothing."""
        priced = {kind: rate * self.prices.get(kind, 0 if self.prices else 1) for kind, rate in self._rates.items()}
        return {kind: rate for kind, rate in priced.items() if rate}

    @cached_property
    def least(self) -> Kept:
        """(layers,) the smallest allowed choices."""
        return self._allowed[0]

    @cached_property
    def most(self) -> Kept:
        """(layers,) the largest allowed choices: all units, where no bound asks for less."""
        return self._allowed[1]

    @cached_property
    def _allowed(self) -> tuple[Kept, Kept]:
        names = [layer.name for layer in self.structure.layers]
        unused = [pattern for pattern in self.bounds if not any(fnmatchcase(name, pattern) for name in names)]
        if unused:
            raise PlanError(f"layers.bounds names {min(unused)!r}, which fits no layer: they are {', '.join(names)}")
        free = {name for branch in self.structure.branches for name in branch.layers} - {
            name for name in names for pattern in self.bounds if fnmatchcase(name, pattern)
        }
        pairs = []
        for layer in self.structure.layers:
            most = min(self.max_sparsity, layer.max_sparsity or 1.0)
            low, high = sparsity_range(layer.name, self.bounds, most)
            if layer.name in free:  # `max_sparsity` is of what stays
                high = 1.0
            fits = [n for n in layer.choices if (1 - high) * layer.units - 1e-9 <= n <= (1 - low) * layer.units + 1e-9]
            if not fits:
                raise PlanError(
                    f"layer {layer.name}: none of its choices ({layer.choices[0]} … {layer.units} of {layer.units} "
                    f"units) has a sparsity in [{low:g}, {high:g}]: widen layers.bounds or lower layers.round_to"
                )
            pairs.append((fits[0], fits[-1]))
        least, most = np.array(pairs, dtype=np.int64).T
        return least, most

    def cost(self, kept: Kept | Sequence[int]) -> float:
        """In the budget's own currency, that of its kind; of several budgets the one nearest to its limit counts."""
        return max(rate * self.structure.cost(kind, kept) for kind, rate in self._rates.items())

    def relaxed_cost(self, kept: Floats) -> float:
        """The cost as if units could be kept in parts."""
        return max(rate * self.structure.relaxed_cost(kind, kept) for kind, rate in self._rates.items())

    def costs_together(self, kept: Kept) -> Floats:
        """(…) what networks cost that keep (…, layers), in the currency of `choice_costs`."""
        costs = [rate * np.asarray(self.structure.costs[kind](kept)) for kind, rate in self._priced.items()]
        return np.asarray(np.sum(costs, axis=0), dtype=np.float64)

    def choice_costs(self) -> list[Floats]:
        """For every layer, (choices,), what the network costs at each of its choices, the others whole.

        Of several budgets it is their sum at their prices.
        """
        each = ([rate * cost for cost in self.structure.choice_costs(kind)] for kind, rate in self._priced.items())
        return [np.sum(costs, axis=0) for costs in zip(*each, strict=True)]

    def bounds_at(self, chosen: Sequence[int]) -> tuple[int, int]:
        """The choices the next layer may take.

        The upper one leaves room for the rest at its smallest (AMC, algorithm 1). The lower one is the mirror
        image: with the rest left whole, the plan still spends the budget. So every walk ends *at* the budget, less
        than one step below it, and a search never wastes a candidate far under it.

        Args:
            chosen: units kept by the layers walked so far.

        Returns:
            (least, most), at least one choice.
        """
        t = len(chosen)
        least, most = self.least, self.most
        bottom = np.concatenate([chosen, least[t:]]).astype(np.int64)
        highest = self._largest(bottom, t, int(least[t]), int(most[t]))
        if t + 1 == len(most):
            return highest, highest
        whole = np.concatenate([chosen, most[t:]]).astype(np.int64)
        return min(self._largest(whole, t, int(least[t]), int(most[t])), highest), highest

    def widen(self, chosen: Sequence[int], count: int) -> int:
        """The largest choice of the next layer that costs no more than `count`: on the stairs of latency, not itself.

        Args:
            chosen: units kept by the layers walked so far.
            count: wished for the next one, a choice of it.
        """
        t = len(chosen)
        kept = np.concatenate([chosen, [count], self.most[t + 1 :]]).astype(np.int64)
        return self._largest(kept, t, count, int(self.most[t]), self.cost(kept))

    def fill(self, target: Floats) -> Kept:
        """Choices near the wished ones that spend the budget and do not exceed it.

        The wish is scaled until it fits, rounded down, and what is left is spent one step at a time where the
        rounding took most.

        Args:
            target: (layers,) wished units, real, positive; only their proportions matter.
        """
        low, high = 0.0, float((self.most / np.maximum(target, 1e-9)).max())
        for _ in range(50):
            middle = (low + high) / 2
            fits = self.cost(self.floor(middle * target)) <= self.limit
            low, high = (middle, high) if fits else (low, middle)
        return self.spend(self.floor(low * target), np.clip(high * target, self.least, self.most))

    def spend(self, kept: Kept, wish: Floats, first: int = 0) -> Kept:
        """Take steps to the next choice, one at a time where most units are wished for, until not one more fits.

        Args:
            kept: (layers,) choices within the budget.
            wish: (layers,) real numbers of units; layers are served by how far they are below.
            first: of the layers that take steps; those before it stay.
        """
        kept = kept.copy()
        blocked = kept >= self.most
        blocked[:first] = True
        while not blocked.all():
            index = int(np.argmax(np.where(blocked, -np.inf, wish - kept)))
            levels, before = self.structure.layers[index].levels, kept[index]
            kept[index] = levels[np.searchsorted(levels, before, side="right")]
            if self.cost(kept) > self.limit:
                kept[index] = before
                blocked[index] = True
            elif kept[index] >= self.most[index]:
                blocked[index] = True
        return kept

    def floor(self, wish: Floats) -> Kept:
        """(layers,) the largest allowed choices that are no more than wished for: (layers,) units, real numbers."""
        pairs = zip(self.structure.layers, wish + 1e-9, strict=True)
        below = [layer.levels[max(0, np.searchsorted(layer.levels, w, side="right") - 1)] for layer, w in pairs]
        return np.clip(np.array(below, dtype=np.int64), self.least, self.most)

    def _largest(self, kept: Kept, t: int, low: int, high: int, limit: float | None = None) -> int:
        """The largest choice of layer t within [low, high] that keeps the cost within the limit; else low."""
        limit = self.limit if limit is None else limit
        levels = self.structure.layers[t].levels
        first, last = int(np.searchsorted(levels, low)), int(np.searchsorted(levels, high))
        while first < last:
            middle = (first + last + 1) // 2
            kept[t] = levels[middle]
            if self.cost(kept) <= limit:
                first = middle
            else:
                last = middle - 1
        return int(levels[first])


def share(structure: Structure, kind: CostKind, said: float | str) -> float:
    """The fraction of the dense network's cost that a budget is, as a config says it.

    Raises:
        PlanError: an amount that is more than that, or of a kind that is not counted here.
    """
    if not isinstance(said, str):
        return said
    whole = structure.cost(counted(structure, kind), structure.units)
    if amount(kind, said) > whole * (1.0 + 10.0 ** (1 - DIGITS)):  # what `told` says of all of it is not too much
        raise PlanError(
            f"budget.{kind} = {said}: the dense network's is {told(kind, whole)}, and nothing would be pruned; ask for "
            "less"
        )
    return min(amount(kind, said) / whole, 1.0)


def counted(structure: Structure, kind: CostKind) -> CostKind:
    """The kind, if the structure counts it.

    Raises:
        PlanError: it does not.
    """
    if kind not in structure.costs:
        known = ", ".join(structure.costs)
        raise PlanError(f"budget.{kind}: this network's {kind} is not counted, only {known}")
    return kind


def _limit(fraction: float, whole: float) -> float:
    # a hair above, so that a fraction which was computed from a cost (a plan's own) still allows that cost
    return fraction * whole * (1.0 + 1e-12)
