"""The parts of a network timed as files in a runtime, and brought to the time of whole networks there.

A part is a convolution or linear layer, with the batch norm behind it folded in, as runtimes do. They fuse over the
borders of parts, and a part that stands alone brings its inputs and outputs into the runtime's own order and back; a
whole network is spared that where channels fill whole blocks. So the parts' sum is not the whole. What is taken is
T = a + b · Σ parts + c · Σ elements that they take in whole blocks, fitted on the whole networks whose layers keep like
shares, above all on those that no wider one outruns; what it leaves of each is given back to those of its parts that a
width changes: the table takes the others as they are in the dense network. What a residual branch takes is what the
whole network is spared where it goes, after others and before them, for what is fused with it shows in no part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from torch import nn

from ...configs import LatencyConfig
from ...networks.copying import copied
from ...networks.norms import LAYERS, channel_dim, fold, following_norms
from ...training.inputs import Inputs, taken
from ..structure import Branch, Structure
from .latency_files import file_times, runtime_name
from .latency_table import Floats, Ints
from .profiler import BLOCK, PASSES, Bar, Profiler, Timer
from .segments import Segment

TOGETHER = 24  # files that are made, timed in turns and kept in the cache …
MOST = 2**26  # … and numbers in them, so that large images and layers do not fill the memory
LINKS = 4  # groups of branches that go one after the other, from the first and from the last
LINK = " beside those without branches"  # in the name of a whole network that is timed for that


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
        slope: b, of a part's own time.
        element: c, nanoseconds for every element that a part takes in whole blocks; below 0 where a part by itself pays
            for an order of its inputs that the whole network has already.
        scales: module of a branch → by which the fit of its part is multiplied.
    """

    slope, element = 1.0, 0.0

    def __init__(self, model: nn.Module, structure: Structure, config: LatencyConfig, bar: Bar):
        # files have no memory format
        super().__init__(copied(model).cpu(), structure, config.model_copy(update={"channels_last": False}), bar)
        self.norms: dict[tuple[str, ...], dict[str, str]] = {}
        self.scales: dict[str, float] = {}

    def measure(self, steps: Ints, others: Ints, timer: Timer | None, gone: Ints | None = None) -> None:
        """Time parts, of `steps` the whole, too, and with `gone` the whole without some branches."""
        steps = np.unique(np.vstack([steps, self.structure.units]), axis=0)
        chains = [] if gone is None else self._chains()
        files = {self._name(kept): Part(kept) for kept in steps}  # first, so timed in turns
        files |= {self._name(kept) + LINK: Part(kept) for chain in chains for kept in chain}
        for kept in np.unique(np.vstack([steps, *chains, others]), axis=0):
            files |= {key: part for key, part in self._parts(kept) if key not in files}
        missing = {key: part for key, part in files.items() if key not in self.cache.times}
        if missing:
            with self.bar(f"time, {runtime_name(self.config)}", len(missing)) as advance:
                for group in self._groups(missing):
                    self._time(group)
                    for _ in group:
                        advance("")
        self._fit(steps)
        if chains:
            self._share_out(chains)

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
        found = file_times(
            {key: self._module(part) for key, part in files.items()},
            {key: self._images(part) for key, part in files.items()},
            self.config,
            PASSES * self.config.repeats,
        )
        self.cache.add({key: round(1e3 * value, 3) for key, value in found.items()})

    def times(self, kept: Ints, steps: Ints | None = None) -> Floats:
        """(networks, segments) nanoseconds; together with `base` they are a pass."""
        factors = np.array([self._factors(step) for step in (kept if steps is None else steps)])
        if steps is not None:  # so that a surface, which multiplies two edges, has the whole's time between its corners
            factors = np.sqrt(factors * self._factors(self.structure.units))
        found: Floats = np.rint(np.array([self._fitted(one) for one in kept]) * factors)
        return found

    def total(self, kept: Ints) -> float:
        """Nanoseconds of a pass of a network (layers,) kept: as timed whole, or the sum that the fit makes of parts."""
        times, name = self.cache.times, self._name(kept)
        if name in times:
            return 1e3 * times[name]
        if name + LINK in times:  # in turns with the dense one, but perhaps at another hour than that by itself
            dense = self._name(self.structure.units)
            return 1e3 * times[name + LINK] * times[dense] / times[dense + LINK]
        return self.base + float(self._fitted(kept).sum())

    def _fitted(self, kept: Ints) -> Floats:
        scales = np.array([self.scales.get(segment.module, 1.0) for segment in self.segments(kept)])
        return scales * [self.slope * t + self.element * n for t, n in self._told(kept)]

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

    def _fit(self, whole: Ints) -> None:
        """Bring the sums to the times of whole networks (networks, layers) kept, by relative least squares."""
        times = np.array([1e3 * self.cache.times[self._name(kept)] for kept in whole])
        wider = (whole >= whole[:, None]).all(axis=2)
        weights = (np.where(wider, times, np.inf).min(axis=1) / times) ** 2  # no plan keeps what a wider one outruns
        sums = np.array([np.sum(self._told(kept), axis=0) for kept in whole])
        matrix = np.column_stack([np.ones(len(whole)), sums]) * (weights / times)[:, None]
        scale = np.abs(matrix).max(axis=0).clip(np.finfo(float).tiny)
        least = [0.0, 0.0, -np.inf]
        found = lsq_linear(matrix / scale, weights, bounds=(least, np.inf)).x / scale
        self.base, self.slope, self.element = map(float, found)

    def _links(self) -> list[Sequence[Branch]]:
        branches = self.structure.branches
        return [branches[part[0] : part[-1] + 1] for part in np.array_split(range(len(branches)), LINKS) if len(part)]

    def _chains(self) -> list[Ints]:
        """Two chains (links + 1, layers) kept: all branches, fewer, none; from the first on, and from the last."""
        links, chains = self._links(), []
        for order in (links, links[::-1]):
            rows = [self.structure.units]
            for link in order:
                rows.append(rows[-1].copy())
                rows[-1][[self.structure.index(name) for branch in link for name in branch.layers]] = 0
            chains.append(np.array(rows))
        return chains

    def _share_out(self, chains: Sequence[Ints]) -> None:
        """Give every branch what the network is spared without it, of several that go together their shares of that."""
        dense, none = chains[0][0], chains[0][-1]
        whole = self.total(dense) - self.total(none)
        if whole <= 0.0:
            return
        first, last = (-np.diff([self.total(kept) for kept in chain]) for chain in chains)
        spared = np.maximum(first + last[::-1], 0.0)
        spared *= whole / spared.sum()
        called = [segment.module for segment in self.segments(dense)]
        fitted = dict(zip(called, self._fitted(dense), strict=True))
        for link, time in zip(self._links(), spared, strict=True):
            modules = [module for branch in link for module in branch.modules if module in fitted]
            parts = sum(fitted[module] for module in modules)
            self.scales |= dict.fromkeys(modules, float(time / parts) if parts > 0.0 else 1.0)
        self.base = self.total(none) - float(self._fitted(none).sum())

    def _told(self, kept: Ints) -> list[tuple[float, int]]:
        """(segments,) nanoseconds of the part by itself, and elements that it takes in whole blocks; 0 of no part."""
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
