"""Weight sharing: a tensor's weights take a few values (Deep Compression: Han et al., ICLR 2016, sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .straight import scaled_gradient

ROUNDS = 300  # of k-means; it stops where nothing moves
MOST = 2**22  # points that values are found by: of more, a part


@dataclass(frozen=True)
class Values:
    """Shared values; see `on_grid.Levels`. A code is a value's place, counted from the middle.

    Attributes:
        table: (k,) ascending, each once.
        dtype: of the weights: the values are numbers of it, whatever they are computed in.
    """

    table: Tensor
    dtype: torch.dtype

    def codes(self, weight: Tensor) -> Tensor:
        """Of the nearest value."""
        return self.places(weight) - len(self.table) // 2

    def values(self, codes: Tensor) -> Tensor:
        """Of these codes."""
        return self.table[codes.long() + len(self.table) // 2]

    def of(self, weight: Tensor) -> Values:
        """As a tensor has them, in its type."""
        return Values(distinct(self.table.to(weight.dtype)), weight.dtype)

    def places(self, weight: Tensor) -> Tensor:
        """Of the nearest value in the table, from 0."""
        return torch.bucketize(weight.double().contiguous(), self._middles)

    @cached_property
    def _middles(self) -> Tensor:
        return (self.table[1:].double() + self.table[:-1].double()) / 2


class Shared(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`): which value a weight has is fixed, and the values are trained.

    A value's gradient is the sum of those of the weights that share it (Han et al., sec. 3.3), over how many they are:
    so a step of an optimizer is that which all of them would take alone, less what would take them apart.

    Attributes:
        table: (k,) the values, trained.
        pruned: which weights are zero whatever is trained; none where all are free.
    """

    def __init__(self, values: Values, weight: Tensor, pruned: Tensor | None = None, *, trained: bool = True):
        super().__init__()
        self.pruned = pruned
        self.table = nn.Parameter(values.table.detach().clone(), requires_grad=trained)
        places = values.places(weight)
        free = places if pruned is None else places[~pruned]
        self._places = places.flatten()
        self._parts = free.flatten().bincount(minlength=len(values.table)).clamp_min(1).to(weight.dtype).reciprocal()

    def forward(self, weight: Tensor) -> Tensor:
        """(q, …) → the values in its place."""
        table = scaled_gradient(self.table, self._parts)
        laid = table.index_select(0, self._places).view_as(weight)
        return laid if self.pruned is None else laid.masked_fill(self.pruned, 0.0)


def kmeans(points: Tensor, mass: Tensor, k: int) -> Tensor:
    """(at most k,) the values, ascending, nearest to which points (n,) of so much mass (n,) each lose least.

    Lloyd's rounds from two beginnings, of which the better one counts. Equal steps between the least and the greatest
    point are best for a few values, where the large weights count most (sec. 3.2). Of many, most would be spent on
    where nothing is: they begin as dense as the points' density to the power of 1/3, which is best for ever more of
    them (Panter & Dite 1951), and that between two neighbours is one over their distance.

    Args:
        points: double.
        mass: not negative, some of it positive.
        k: 1 or more.
    """
    step = (len(points) // MOST) | 1  # odd, so that it falls on every input and kernel position
    points, mass = points[::step], mass[::step]
    points, mass = points[mass > 0.0], mass[mass > 0.0]
    order = points.argsort()
    x, m = points[order], mass[order]
    if len(found := distinct(x)) <= k:
        return found
    sums = torch.stack([m, m * x, m * x * x])
    sums = torch.cat([sums.new_zeros(3, 1), sums.cumsum(1)], 1)
    even = torch.linspace(0.0, 1.0, k, dtype=x.dtype, device=x.device)
    steps = torch.cat([x.new_zeros(1), ((m[1:] + m[:-1]) * x.diff().square()).pow(1 / 3).cumsum(0)])
    dense = x[torch.searchsorted(steps, (even * (k - 1) + 0.5) / k * steps[-1])]
    tried = [_lloyd(x, sums, values) for values in (x[0] + even * (x[-1] - x[0]), dense)]
    values = min(tried, key=lambda found: found[1])[0]
    return distinct(values)


def _lloyd(x: Tensor, sums: Tensor, values: Tensor) -> tuple[Tensor, float]:
    """Where values (k,) end, ascending points (n,) given, and what is lost; sums (3, n + 1) of mass, mass·x, mass·x²
    up to each. Points are looked up, not walked: a round takes k look-ups."""
    for _ in range(ROUNDS):
        ends = torch.searchsorted(x, (values[1:] + values[:-1]) / 2)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(x))])
        weight, first, second = sums[:, edges].diff(dim=1)
        found = torch.where(weight > 0.0, first / weight, values)
        if torch.equal(found, values):
            break
        values = found
    return values, float((second - 2.0 * values * first + values.square() * weight).sum())


def distinct(values: Tensor) -> Tensor:
    """Each once, ascending."""
    found: Tensor = values.unique()  # type: ignore[no-untyped-call]
    return found
