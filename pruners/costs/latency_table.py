"""Latency as a cost, quick to look up: a sum of curves over what a layer keeps, and surfaces over what two keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """What a segment's time depends on: a size, or a product of two, in terms of what the layers keep.

    Attributes:
        sizes: the two dense units in least terms, so that all that shrinks alike has one form; 1 where no layer
            changes it.
        units: for either, how much of it goes with a unit of every layer.
    """

    sizes: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sizes: Ints, units: Ints) -> Form:
        """From (sides,) dense units and what goes with a unit of every layer, (sides, layers)."""
        rows = np.column_stack([sizes, units])
        rows[~units.any(axis=1), 0] = 1
        least = sorted(tuple((row // np.gcd.reduce(row)).tolist()) for row in rows)
        return cls(tuple(row[0] for row in least), tuple(row[1:] for row in least))

    @property
    def varies(self) -> bool:
        """Whether any layer changes it."""
        return any(map(any, self.units))

    def at(self, removed: Ints) -> Ints:
        """(networks,) its values in networks that lack so many units (networks, layers)."""
        return np.asarray((np.array(self.sizes) - removed @ np.array(self.units).T).prod(axis=1))


@dataclass(frozen=True)
class Curve:
    """Nanoseconds over a form: straight between knots, constant beyond them, never falling.

    Attributes:
        form: what the knots are values of.
        knots: (n,) ascending, n ≥ 2.
        values: (n,).
    """

    form: Form
    knots: Ints
    values: Floats

    @classmethod
    def below(cls, form: Form, removed: Ints, times: Floats) -> Curve:
        """The highest curve that lies nowhere above the points measured.

        Args:
            form: what it is over.
            removed: (networks, layers) units that the networks lack.
            times: (networks,) nanoseconds.
        """
        knots, place = np.unique(form.at(removed), return_inverse=True)
        least = np.full(len(knots), np.inf)
        np.minimum.at(least, place, times)  # small layers keep as many in several networks
        return cls(form, knots, np.minimum.accumulate(least[::-1])[::-1])


class LatencyTable:
    """Nanoseconds of a batch as a function of what the layers keep: a `CostModel`.

    It never falls where a width grows; the budget's bisections need that. So where a wider layer was *faster*, the
    narrower one is taken to cost as much as that: it is not worth having, `Budget.widen` gives the wider one, and for
    that the table is right.

    A surface is told by its two edges, nanoseconds over either width with the other one whole, and one corner. With u
    and v the edges scaled to [0, 1], the times at the four corners span
    T₁₁ + (T_A1 − T₁₁) u + (T_1B − T₁₁) v + (T_AB − T_A1 − T_1B + T₁₁) u v. That is right for any α + β f + γ g + δ f g:
    for kernels that work on blocks of channels as for a number of multiplications.
    """

    def __init__(
        self, dense: Ints, fixed: float, curves: Sequence[Curve], surfaces: Sequence[tuple[Curve, Curve, float]]
    ):
        """Ready to be asked.

        Args:
            dense: (layers,) dense units.
            fixed: nanoseconds that no width changes.
            curves: of what depends on one width.
            surfaces: of what depends on two: edges, and nanoseconds where both kept are least.
        """
        self.dense = dense
        self.fixed = fixed
        factors, cross, found = [1.0] * len(curves), [], list(curves)
        for first, second, corner in surfaces:
            least = min(corner, first.values[0], second.values[0])
            self.fixed += least
            factors += [second.values[0] - least, first.values[0] - least]
            cross.append(first.values[-1] - first.values[0] - second.values[0] + least)
            found += [_scaled(first), _scaled(second)]
        self.factors, self.cross = np.array(factors), np.array(cross)
        self.sizes = np.array([curve.form.sizes for curve in found], dtype=float).T
        self.units = np.array([curve.form.units for curve in found], dtype=float).swapaxes(0, 1)
        # all curves one behind the other on one axis, each from 0 on: a single look-up finds the place on every one
        lengths = np.array([curve.knots[-1] + 1.0 for curve in found])
        self.start = np.cumsum(lengths) - lengths
        knots = [np.concatenate([[0], curve.knots]) + start for curve, start in zip(found, self.start, strict=True)]
        self.axis = np.concatenate(knots)
        self.values = np.concatenate([[curve.values[0], *curve.values] for curve in found])

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) units kept, integer or real → (…) nanoseconds."""
        if kept.ndim == 1:
            return self._total(kept)
        return np.apply_along_axis(self._total, -1, kept)

    def _total(self, kept: NDArray[Any]) -> float:
        first, second = self.sizes - self.units @ (self.dense - kept)
        values = np.interp(first * second + self.start, self.axis, self.values)
        edges = values[len(values) - 2 * len(self.cross) :]
        return float(self.fixed + self.factors @ values + self.cross @ (edges[::2] * edges[1::2]))


class LayerTimes:
    """Nanoseconds of a batch where what a layer takes depends on what itself keeps, alone: a `CostModel`.

    As measured, also where keeping less takes longer (two small layers may, in the place of one): such a number is
    no choice, see `Structure.with_cost`, and a plan that keeps it all the same costs what it takes. Between whole
    numbers a layer costs what the highest curve says that never falls.
    """

    def __init__(self, fixed: float, times: Sequence[Floats]):
        """Ready to be asked.

        Args:
            fixed: nanoseconds that no layer changes.
            times: every layer's (units + 1,) at every number kept.
        """
        self.fixed = fixed
        lengths = np.array([len(time) for time in times])
        self.start = np.cumsum(lengths) - lengths
        self.times = np.concatenate(times)
        self.below = np.concatenate([np.minimum.accumulate(time[::-1])[::-1] for time in times])

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) units kept, integer or real → (…) nanoseconds."""
        at = self.start + kept
        if np.issubdtype(at.dtype, np.integer):
            return self.fixed + self.times[at].sum(axis=-1)
        return self.fixed + np.interp(at, np.arange(len(self.below)), self.below).sum(axis=-1)


def _scaled(curve: Curve) -> Curve:
    """From 0 to 1; 0 throughout where it is flat."""
    rise = curve.values[-1] - curve.values[0]
    return replace(curve, values=(curve.values - curve.values[0]) / (rise if rise > 0.0 else 1.0))
