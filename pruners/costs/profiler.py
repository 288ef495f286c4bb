"""A network cut, described and timed segment by segment; what was timed once is looked up."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...configs import LatencyConfig
from ...training.inputs import leaves, taken
from ..structure import PlanError, Structure
from .latency import formatted, random_images, stopwatch
from .latency_cache import LatencyCache
from .latency_files import runtime_name
from .latency_table import Floats, Ints
from .segments import Segment, describe, time_segments

BLOCK = 8  # channels that kernels work on together
PASSES = 3  # for every one of `latency.repeats`, of what is in one network: widths are in several, and share samples

Timer = Callable[[nn.Module, Tensor], Sequence[float]]
Bar = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
"""Title and total → a progress bar, whose function advances it by one and says something behind it."""


@contextlib.contextmanager
def no_bar(_title: str, _total: int) -> Any:
    """Nothing is shown."""
    yield lambda _note: None


class Profiler:
    """Cuts the network, describes it and times it.

    Attributes:
        base: nanoseconds of a pass that are no segment's.
        places: layer's name → its place in the walk, of layers that stand apart.
    """

    base = 0.0

    def __init__(self, model: nn.Module, structure: Structure, config: LatencyConfig, bar: Bar):
        self.model = model
        self.structure = structure
        self.config = config
        self.bar = bar
        self.images = random_images(model, structure.input_shape, config)
        self.device = next(iter(leaves(self.images).values())).device
        self.cache = LatencyCache(self.device, config)
        self.known: dict[tuple[int, ...], list[Segment]] = {}
        self.places = {layer.name: i for i, layer in enumerate(structure.layers)} if structure.apart else {}

    def network(self, kept: Ints) -> nn.Module:
        """With the first so many units of every layer (layers,)."""
        assert self.structure.first_units is not None
        return formatted(self.structure.first_units(self.model, self.structure, kept), self.config)

    def segments(self, kept: Ints) -> list[Segment]:
        """Of the network that keeps so many units (layers,); the dense one's come first."""
        key = tuple(kept.tolist())
        if key not in self.known:
            self.known[key] = describe(self.network(kept), taken(self.images, slice(1)))
            dense = next(iter(self.known.values()))
            if self._called(self.known[key]) != self._called(dense):
                raise PlanError("cut, this network calls other modules than whole: its latency is no sum; budget FLOPs")
        return self.known[key]

    def measure(self, steps: Ints, others: Ints, timer: Timer | None, gone: Ints | None = None) -> None:
        """Time what the cache does not hold, in rounds over all networks: a noisy spell then hits all alike.

        Args:
            steps: (networks, layers) kept, like shares of all layers.
            others: (networks, layers) kept.
            timer: as `take_table` takes it.
            gone: (layers,) kept where all branches that may go are gone.
        """
        held = set(self.cache.times)
        designs = np.unique(np.vstack([steps, others, *([] if gone is None else [gone])]), axis=0)
        networks = [w for w in designs if not held.issuperset(s.key for s in self.segments(w))]
        if not networks:
            return
        samples: dict[str, list[float]] = {}
        repeats = self.config.repeats * (PASSES if self.places else 1)
        with (
            stopwatch(self.device, self.config) as clock,
            self.bar(f"time, {runtime_name(self.config)}", repeats * len(networks)) as advance,
        ):
            timer = timer or partial(time_segments, clock=clock)
            for _ in range(repeats):
                for kept in networks:
                    seconds = timer(self.network(kept), self.images)
                    for segment, value in zip(self.segments(kept), seconds, strict=True):
                        samples.setdefault(segment.key, []).append(1e6 * value)
                    advance("")
        new = {key: statistics.median_low(values) for key, values in samples.items() if key not in held}
        self.cache.add({key: round(value, 3) for key, value in new.items()})

    def times(self, kept: Ints, steps: Ints | None = None) -> Floats:
        """(networks, segments) nanoseconds; of those cut in some layers alone, `steps` are cut in all alike."""
        times = self.cache.times
        return np.array([[round(1e3 * times[segment.key]) for segment in self.segments(w)] for w in kept], dtype=float)

    def left(self, gone: Ints) -> Floats:
        """(segments,) nanoseconds that are left of each without the branches that are gone in a network (layers,)."""
        found: Floats = self.times(gone[None])[0]
        return found

    def total(self, kept: Ints) -> float:
        """Nanoseconds of a pass of a network (layers,) kept."""
        return self.base + float(self.times(kept[None]).sum())

    def layer_times(self, kept: Ints) -> Floats:
        """(networks, layers + 1) nanoseconds in each layer's place, of layers that stand apart, and of all the rest."""
        rows = []
        for one in kept:
            places = [self.places.get(self._place(s.module), len(self.places)) for s in self.segments(one)]
            rows.append(np.bincount(places, self.times(one[None])[0], len(self.places) + 1))
        return np.array(rows)

    def _place(self, module: str) -> str:
        """The layer in whose place a module stands, with others; else itself."""
        parent = module.rpartition(".")[0]
        return parent if parent in self.places else module

    def _called(self, segments: Sequence[Segment]) -> list[str]:
        """Names, one for those that stand in a layer's place."""
        groups = groupby(self._place(segment.module) for segment in segments)
        return [each for name, group in groups for each in ([name] if name in self.places else group)]
