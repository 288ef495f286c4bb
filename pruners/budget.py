"""The budget: what a plan may cost, and what each step of the walk may still do to meet it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..configs import CostKind
from .layers import PlanError, Structure


@dataclass(frozen=True)
class Budget:
    """The most a finished plan may cost, counted with integer channels.

    A cost never falls where a width grows, or the bisections here would be wrong; it may stand still.

    Attributes:
        structure: the dense network's layers.
        kind: `flops`, `params`, or `latency` where the structure has a table of it.
        fraction: of the dense network's cost, in (0, 1].
        max_sparsity: of any one layer, in (0, 1).

    Raises:
        PlanError: even the strongest allowed pruning costs more; the message says what can be reached.
    """

    structure: Structure
    kind: CostKind
    fraction: float
    max_sparsity: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise PlanError(f"budget.{self.kind} = {self.fraction}: a fraction of the dense network in (0, 1]")
        if not 0.0 < self.max_sparsity < 1.0:
            raise PlanError(f"max_sparsity = {self.max_sparsity}: must lie in (0, 1)")
        if self.kind == "latency" and self.structure.latency is None:
            raise PlanError(
                "budget.latency needs the network's table: replace(structure, latency=take_table(model, …))"
            )
        least = self.cost(self.least)
        if least > self.limit:
            reachable = np.ceil(1e4 * least / self.cost(self.structure.widths)) / 1e4
            raise PlanError(
                f"budget.{self.kind} = {self.fraction:g} cannot be met: cutting every layer to "
                f"{self.max_sparsity:g} still keeps {reachable:g}; ask for at least that, raise "
                "layers.max_sparsity, or set layers.cut=all"
            )

    @cached_property
    def limit(self) -> float:
        """The cost that must not be exceeded."""
        # a hair above, so that a fraction which was computed from a cost (a plan's own) still allows that cost
        return self.fraction * self.cost(self.structure.widths) * (1.0 + 1e-12)

    @property
    def least(self) -> NDArray[np.int64]:
        """(layers,) the smallest allowed widths."""
        least = np.ceil((1.0 - self.max_sparsity) * self.structure.widths - 1e-9).astype(np.int64)
        return np.asarray(least.clip(min=1), dtype=np.int64)

    def cost(self, widths: NDArray[np.int64] | Sequence[int]) -> int:
        """In the budget's own currency."""
        return self.structure.cost(self.kind, widths)

    def bounds(self, chosen: Sequence[int]) -> tuple[int, int]:
        """The widths the next layer may take.

        The upper one leaves room for the rest at its smallest (AMC, algorithm 1). The lower one is the mirror
        image: with the rest left whole, the plan still spends the budget. So every walk ends *at* the budget, less
        than one channel below it, and a search never wastes a candidate far under it.

        Args:
            chosen: widths of the layers walked so far.

        Returns:
            (least, most), at least one width.
        """
        t = len(chosen)
        dense, least = self.structure.widths, self.least
        most = self._largest(np.concatenate([chosen, least[t:]]).astype(np.int64), t, int(least[t]), int(dense[t]))
        whole = np.concatenate([chosen, dense[t:]]).astype(np.int64)
        fewest = self._largest(whole, t, int(least[t]) - 1, int(dense[t])) if t + 1 < len(dense) else most
        return min(max(fewest, int(least[t])), most), most

    def widen(self, chosen: Sequence[int], width: int) -> int:
        """The largest width of the next layer that costs no more than `width`: on the stairs of latency, not itself.

        Args:
            chosen: widths of the layers walked so far.
            width: wished for the next one.
        """
        t = len(chosen)
        widths = np.concatenate([chosen, [width], self.structure.widths[t + 1 :]]).astype(np.int64)
        return self._largest(widths, t, width, int(self.structure.widths[t]), self.cost(widths))

    def fill(self, target: NDArray[np.float64]) -> NDArray[np.int64]:
        """Integer widths near the wished ones that spend the budget and do not exceed it.

        The wish is scaled until it fits, rounded down, and what is left is spent one channel at a time where the
        rounding took most.

        Args:
            target: (layers,) wished widths, real, positive; only their proportions matter.
        """
        dense, least = self.structure.widths, self.least
        low, high = 0.0, float((dense / np.maximum(target, 1e-9)).max())
        for _ in range(50):
            middle = (low + high) / 2
            fits = self.cost(self._floor(middle * target)) <= self.limit
            low, high = (middle, high) if fits else (low, middle)
        return self.spend(self._floor(low * target), np.clip(high * target, least, dense))

    def spend(self, widths: NDArray[np.int64], wish: NDArray[np.float64]) -> NDArray[np.int64]:
        """Add channels, one at a time where most is wished for, until not one more fits.

        Args:
            widths: (layers,) within the budget.
            wish: (layers,) real widths; layers are served by how far they are below.
        """
        widths = widths.copy()
        blocked = widths >= self.structure.widths
        while not blocked.all():
            layer = int(np.argmax(np.where(blocked, -np.inf, wish - widths)))
            widths[layer] += 1
            if self.cost(widths) > self.limit:
                widths[layer] -= 1
                blocked[layer] = True
            elif widths[layer] >= self.structure.widths[layer]:
                blocked[layer] = True
        return widths

    def _floor(self, widths: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.clip(np.floor(widths + 1e-9), self.least, self.structure.widths).astype(np.int64)

    def _largest(self, widths: NDArray[np.int64], t: int, low: int, high: int, limit: float | None = None) -> int:
        """The largest width of layer t within [low, high] that keeps the cost within the limit; else low."""
        limit = self.limit if limit is None else limit
        while low < high:
            widths[t] = (low + high + 1) // 2
            if self.cost(widths) <= limit:
                low = int(widths[t])
            else:
                high = int(widths[t]) - 1
        return low
