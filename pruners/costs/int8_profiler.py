"""What widths save in 8 bits, told by whole networks alone.

A file of one layer takes most of its time to bring images into 8 bits and back, which a whole network does not do for
each: it says nothing of what a narrower layer saves there. So none is timed. Beside networks whose layers keep like
shares others are timed that are cut link by link, to a half and to a quarter of every layer, from the first layers on
and from the last. To them T = a + Σ over links of b · multiplications is fitted, with one b for all links as far as the
times do not clearly say otherwise: what a link of a small network saves is little more than what two timings of one
network differ by, and a budget would pick those links on which the clock was kind. A b may be below 0: there narrower
takes longer, and the table keeps the layer as it is, but does not take it from what others save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from .counts import count_operations
from .file_fit import chains
from .file_profiler import LINKS, FileProfiler, Part
from .latency_table import Floats, Ints

SHARES = (2, 4)  # chains end at a half, and at a quarter, of every layer
ALIKE = 0.03  # see `scales`: a link's timings are off by a few hundredths, and links are not the same one by one


class Int8Profiler(FileProfiler):
    """Times whole networks in 8 bits.

    Attributes:
        scales: place that a link of the chains changes → by which what its multiplications take is multiplied, and
        rest: by which that of all others is.
    """

    passes = 10  # few files, and all is told by what little they differ by
    scales: dict[str, float]
    rest: float

    def times(self, kept: Ints, steps: Ints | None = None) -> Floats:
        """(networks, segments) nanoseconds: what the fit leaves of a whole network goes to what widths change.

        By what that takes: networks of odd numbers of channels take longer in all layers.
        """
        dense = self.structure.units
        beyond = np.array([self._beyond(step) for step in (kept if steps is None else steps)])
        if steps is not None:  # an edge has half of it
            beyond = (beyond + self._beyond(dense)) / 2.0
        shares = np.abs(self._fitted(dense)) * self._varies(dense)
        fitted = np.array([self._fitted(one) for one in kept])
        found: Floats = np.rint(fitted + np.outer(beyond, shares / max(shares.sum(), 1.0)))
        return found

    def _beyond(self, kept: Ints) -> float:
        """Nanoseconds of a whole network that the fit does not say."""
        return self.total(kept) - self.base - float(self._fitted(kept).sum())

    def _chains(self, steps: Ints) -> list[Ints]:
        shares = [steps[len(steps) // part - 1] for part in SHARES]
        return [chain for share in shares for chain in chains(self.structure.units, share, LINKS)]

    def _fit(self, steps: Ints, widths: list[Ints]) -> None:
        dense = self.structure.units
        self.slope = self.total(dense) / sum(multiplications for multiplications, _ in self._told(dense))
        self.base, self.rest, self.scales = self._scaled(widths, super()._fitted, ALIKE)

    def _fitted(self, kept: Ints) -> Floats:
        found: Floats = super()._fitted(kept) * self._by_place(kept, self.scales, self.rest)
        return found

    def _tell(self, kept: Ints) -> list[tuple[float, int]]:
        """(segments,) multiplications an image in the place of nanoseconds, and no elements."""
        count = Counter[str]()
        for operation in count_operations(self.network(kept), self.images):
            count[operation.module] += operation.flops
        segments = self.segments(kept)
        calls = Counter(segment.module for segment in segments)
        return [(count[segment.module] / calls[segment.module], 0) for segment in segments]

    def _parts(self, kept: Ints) -> Iterator[tuple[str, Part]]:
        yield from ()
