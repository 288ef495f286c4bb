"""The parts of a network timed as files in a runtime, and brought to the time of whole networks there.

A part is a convolution or linear layer, with the batch norm behind it folded in, as runtimes do. They fuse over the
borders of parts, and a part that stands alone brings its inputs and outputs into the runtime's own order and back; a
whole network is spared that where channels fill whole blocks. So the parts' sum is not the whole. What is taken is
T = a + b · Σ parts + c · Σ elements that they take in whole blocks, fitted on the whole networks whose layers keep like
shares, above all on those that no wider one outruns; what it leaves of each is given back to those of its parts that a
width changes: the table takes the others as they are in the dense network.

Where residual branches may go, whole networks lose them link by link, from the first on and from the last: they say
what the network is spared without each, and nothing of widths.

Whole networks are always timed beside the dense one, and kept as if in the hour in which that was timed first: another
structure, or a run that goes on, finds some of them known, and times the others when the machine may be twice as busy.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...configs import LatencyConfig
from ...networks.copying import copied
from ...networks.norms import LAYERS, channel_dim, fold, following_norms
from ...training.inputs import Inputs, taken
from ..structure import Structure
from .file_fit import chains, line, scales
from .latency_files import file_times, runtime_name
from .latency_table import Floats, Ints
from .profiler import BLOCK, PASSES, Bar, Profiler, Timer
from .segments import Segment

TOGETHER = 32  # files that are made, timed in turns and kept in the cache …
MOST = 2**26  # … and numbers in them, so that large images and layers do not fill the memory
BRANCHES_ALIKE = 0.003  # a branch saves as it is measured to: more than what two timings differ by
LINKS = 8  # groups of layers that are cut one after the other, from the first and from the last


@dataclass(frozen=True)
class Part:
    """What becomes a file: made when it is timed, so that few are in memory.

    Attributes:
        kept: (layers,) of the network that it is of.
        segment: none for the whole network.
        numbers: of its images and weights; 0 of whole networks, which are timed together whatever they take.
    """

    kept: Ints
    segment: Segment | None = None
    numbers: int = 0


class FileProfiler(Profiler):
    """Times what a runtime makes of the network; on the CPU.

    Attributes:
        passes: for every one of `latency.repeats`.
        slope: b, of a part's own time.
        element: c, nanoseconds for every element that a part takes in whole blocks; below 0 where a part by itself pays
            for an order of its inputs that the whole network has already.
        spared: (segments,) nanoseconds of the whole network without the branches that may go.
    """

    passes = PASSES
    slope, element = 1.0, 0.0

    def __init__(self, model: nn.Module, structure: Structure, config: LatencyConfig, bar: Bar):
        # files have no memory format
        super().__init__(copied(model).cpu(), structure, config.model_copy(update={"channels_last": False}), bar)
        self.norms: dict[tuple[str, ...], dict[str, str]] = {}
        self.told: dict[tuple[int, ...], list[tuple[float, int]]] = {}

    def measure(self, steps: Ints, others: Ints, timer: Timer | None, gone: Ints | None = None) -> None:
        """Time parts, of `steps` the whole, too; where `gone` is given, of a chain to it as well."""
        dense = self.structure.units
        branches = [] if gone is None else chains(dense, gone, LINKS)
        widths = self._chains(steps)
        steps = np.unique(np.vstack([steps, dense]), axis=0)
        wholes = np.vstack([steps, *widths, *branches])
        files = {self._name(kept): Part(kept) for kept in wholes}  # first, so timed in turns
        for kept in np.unique(np.vstack([wholes, others]), axis=0):
            files |= {key: part for key, part in self._parts(kept) if key not in files}
        missing = {key: part for key, part in files.items() if key not in self.cache.times}
        if missing:
            with self.bar(f"time, {runtime_name(self.config)}", len(missing)) as advance:
                for group in self._groups(missing):
                    self._time(group)
                    for _ in group:
                        advance("")
        self._fit(steps, widths)
        if gone is not None:
            *_, found = self._scaled(branches, self._alone, BRANCHES_ALIKE)
            self.spared = (self._alone(dense) - self._alone(gone)) * self._by_place(dense, found, 1.0)

    def _chains(self, steps: Ints) -> list[Ints]:
        """Of widths: whole networks that are timed besides `steps`."""
        return []

    def _groups(self, files: dict[str, Part]) -> Iterator[dict[str, Part]]:
        group: dict[str, Part] = {}
        numbers = 0
        for key, part in files.items():
            if group and (len(group) == TOGETHER or numbers + part.numbers > MOST):
                yield group
                group, numbers = {}, 0
            group[key] = part
            numbers += part.numbers
        yield group

    def _time(self, files: dict[str, Part]) -> None:
        """In turns; whole networks beside the dense one, brought to the hour in which that is known."""
        wholes = {key for key, part in files.items() if part.segment is None}
        dense, known = self._name(self.structure.units), self.cache.times
        if wholes:
            files = {dense: Part(self.structure.units)} | files
        found = file_times(
            {key: self._module(part) for key, part in files.items()},
            {key: self._images(part) for key, part in files.items()},
            self.config,
            self.passes * self.config.repeats,
        )
        hour = known[dense] / (1e3 * found[dense]) if wholes and dense in known else 1.0
        found = {key: value * (hour if key in wholes else 1.0) for key, value in found.items() if key not in known}
        self.cache.add({key: round(1e3 * value, 3) for key, value in found.items()})

    def times(self, kept: Ints, steps: Ints | None = None) -> Floats:
        """(networks, segments) nanoseconds; together with `base` they are a pass."""
        factors = np.array([self._factors(step) for step in (kept if steps is None else steps)])
        if steps is not None:  # so that a surface, which multiplies two edges, has the whole's time between its corners
            factors = np.sqrt(factors * self._factors(self.structure.units))
        found: Floats = np.rint(np.array([self._fitted(one) for one in kept]) * factors)
        return found

    def left(self, gone: Ints) -> Floats:
        """(segments,) nanoseconds, below 0 where the whole network is spared more than what a part takes."""
        found: Floats = self.times(self.structure.units[None])[0] - self.spared
        return found

    def total(self, kept: Ints) -> float:
        """Nanoseconds of a pass of a network (layers,) kept: as timed whole, or the sum that the fit makes of parts."""
        times, name = self.cache.times, self._name(kept)
        return 1e3 * times[name] if name in times else self.base + float(self._fitted(kept).sum())

    def _fitted(self, kept: Ints) -> Floats:
        return np.array([self.slope * t + self.element * n for t, n in self._told(kept)])

    def _by_place(self, kept: Ints, scales: dict[str, float], rest: float) -> Floats:
        """(segments,) the scale of each one's place, and of all others."""
        return np.array([scales.get(self._place(segment.module), rest) for segment in self.segments(kept)])

    def _alone(self, kept: Ints) -> Floats:
        """(segments,) what parts take by themselves, in such a unit that those of the dense network add up to it."""
        dense = self.structure.units
        found, whole = (np.array([t for t, _ in self._told(one)]) for one in (kept, dense))
        shared: Floats = self.total(dense) / whole.sum() * found
        return shared

    def _factors(self, step: Ints) -> Floats:
        """(segments,) by which parts that widths change are to be multiplied so that all add up to the whole."""
        fitted, varies = self._fitted(step), self._varies(step)
        left, changed = self.total(step) - self.base - float(fitted.sum()), float(fitted[varies].sum())
        return np.where(varies, max(0.0, 1.0 + left / changed) if changed > 0.0 else 1.0, 1.0)

    def _varies(self, kept: Ints) -> NDArray[np.bool_]:
        """(segments,) whether a width changes them."""
        if self.places:
            return np.array([self._place(segment.module) in self.places for segment in self.segments(kept)])
        dense = self.segments(self.structure.units)
        least = self.segments(np.ones_like(self.structure.units))
        return np.array([one.sizes != other.sizes for one, other in zip(dense, least, strict=True)])

    def _fit(self, steps: Ints, widths: list[Ints]) -> None:
        """Bring the sums to the times of whole networks: of like shares, and of chains."""
        sums = np.array([np.sum(self._told(kept), axis=0) for kept in steps])
        times = np.array([self.total(kept) for kept in steps])
        self.base, self.slope, self.element = map(float, line(steps, sums, times))

    def _scaled(
        self, chain: list[Ints], parts: Callable[[Ints], Floats], alike: float
    ) -> tuple[float, float, dict[str, float]]:
        """Base, rest and scales of parts with which a link takes what the whole network is spared by its cut."""
        rows, links = np.unique(np.vstack(chain), axis=0), self._links(chain[0])
        sums = np.zeros((len(rows), len(chain[0])))  # of what no link changes, and of the links
        for row, kept in zip(sums, rows, strict=True):
            numbers = [links.get(self._place(segment.module), 0) for segment in self.segments(kept)]
            row += np.bincount(numbers, parts(kept), len(row))
        constant, found = scales(sums[:, 1:], np.array([self.total(kept) for kept in rows]), alike)
        unchanged = float(sums[0, 0])
        rest = float(np.clip(constant / unchanged, 0.0, 1.0)) if unchanged > 0.0 else 1.0
        return constant - rest * unchanged, rest, {place: float(found[number - 1]) for place, number in links.items()}

    def _links(self, chain: Ints) -> dict[str, int]:
        """What a link of a chain (links + 1, layers) changes, or takes away → its number, from 1."""
        found: dict[str, int] = {}
        before: dict[str, list[str]] = {}
        for number, kept in enumerate(chain):
            now: dict[str, list[str]] = {}
            for segment in self.segments(kept):
                now.setdefault(self._place(segment.module), []).append(segment.key)
            if number:
                found = {place: number for place in before if now.get(place) != before[place]} | found
            before = now
        return found

    def _told(self, kept: Ints) -> list[tuple[float, int]]:
        """(segments,) nanoseconds of the part by itself, and elements that it takes in whole blocks; 0 of no part."""
        key = tuple(kept.tolist())
        if key not in self.told:
            self.told[key] = self._tell(kept)
        return self.told[key]

    def _tell(self, kept: Ints) -> list[tuple[float, int]]:
        network = self.network(kept)
        told = []
        for segment in self.segments(kept):
            if not self._is_part(network, segment):
                told.append((0.0, 0))
                continue
            shape = self._shape(segment)
            channels = shape[channel_dim(network.get_submodule(segment.module))]
            elements = 0 if channels % BLOCK else int(np.prod(shape))
            told.append((1e3 * self.cache.times[self._key(network, kept, segment)], elements))
        return told

    def _parts(self, kept: Ints) -> Iterator[tuple[str, Part]]:
        network = self.network(kept)
        for segment in self.segments(kept):
            if self._is_part(network, segment):
                weights = sum(p.numel() for p in network.get_submodule(segment.module).parameters())
                part = Part(kept, segment, weights + math.prod(self._shape(segment)))
                yield self._key(network, kept, segment), part

    def _module(self, part: Part) -> nn.Module:
        network = self.network(part.kept)
        return network if part.segment is None else self._folded(network, part.kept, part.segment)

    def _images(self, part: Part) -> Inputs:
        if part.segment is None:
            return self.images
        return torch.randn(self._shape(part.segment), generator=torch.Generator().manual_seed(0))

    def _shape(self, segment: Segment) -> tuple[int, ...]:
        return (self.config.batch, *segment.inputs[0])

    def _is_part(self, network: nn.Module, segment: Segment) -> bool:
        return isinstance(network.get_submodule(segment.module), LAYERS) and len(segment.inputs) == 1

    def _folded(self, network: nn.Module, kept: Ints, segment: Segment) -> nn.Module:
        module = network.get_submodule(segment.module)
        called = tuple(other.module for other in self.segments(kept))
        if called not in self.norms:
            self.norms[called] = following_norms(network, taken(self.images, slice(1)))
        norm = self.norms[called].get(segment.module)
        return module if norm is None else fold(module, network.get_submodule(norm))

    def _key(self, network: nn.Module, kept: Ints, segment: Segment) -> str:
        return f"{self._folded(network, kept, segment)!r}({'x'.join(map(str, segment.inputs[0]))})"

    def _name(self, kept: Ints) -> str:
        """Of the whole network that keeps so many: by all that it calls."""
        calls = "\n".join(segment.key for segment in self.segments(kept))
        return f"whole network {hashlib.sha256(calls.encode()).hexdigest()}"
