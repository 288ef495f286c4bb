"""Take a network's latency table on this machine.

The network is cut to a few dozen combinations of units kept and runs as it always does, timed segment by segment.
Segments that do the same are one, and share their samples; the median counts, for medians of parts add up to that of
the whole where minima do not. Kernels work on blocks of 8 or 16 channels, so that curves are stairs: they are known at
pairs of sizes, a multiple and the next one, and straight in between.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ...configs import LatencyConfig
from ...training.inputs import leaves, taken
from ..structure import PlanError, Structure
from .latency import formatted, random_images, stopwatch
from .latency_cache import LatencyCache
from .latency_table import Curve, Floats, Form, Ints, LatencyTable
from .segments import Segment, describe, time_segments

Timer = Callable[[nn.Module, Tensor], Sequence[float]]

STEPS = 8  # of a layer's width, that a curve is known at
BLOCK = 8  # channels that kernels work on together


def take_table(
    model: nn.Module,
    structure: Structure,
    config: LatencyConfig | None = None,
    *,
    timer: Timer | None = None,
) -> LatencyTable:
    """Measure what the cache does not hold, and make the table.

    Args:
        model: dense, in eval mode; not changed.
        structure: its layers.
        config: images a pass, threads, passes, memory format.
        timer: seconds of every segment of one pass of a network over a batch; none really measures.

    Raises:
        PlanError: the network calls other modules when it is cut.
    """
    if structure.first_units is None:
        raise PlanError(f"budget.latency: no latency table for method: {structure.method}; budget flops or params")
    dense = structure.units
    profiler = _Profiler(model, structure, config or LatencyConfig())
    sizes, units = _shapes(profiler)
    colours = _colours(units)
    steps = _steps(dense)
    edges = [np.where(colours == colour, steps, dense) for colour in range(colours.max() + 1)]
    profiler.measure(np.concatenate([steps, *edges]), timer)

    together = profiler.times(steps)
    apart = [profiler.times(edge) for edge in edges]
    shared: dict[Form, Floats] = {}
    surfaces = []
    for i in range(len(sizes)):
        pair = [int(colours[np.argmax(side)]) for side in units[i]]
        if units[i].any(axis=1).all() and pair[0] != pair[1]:
            forms = [Form.of(np.where(side, sizes[i], 1), units[i] * side[:, None]) for side in np.eye(2, dtype=bool)]
            first, second = (Curve.below(f, dense - edges[c], apart[c][:, i]) for f, c in zip(forms, pair, strict=True))
            surfaces.append((first, second, float(together[0, i])))
        else:
            form = Form.of(sizes[i], units[i])
            shared[form] = shared.get(form, 0.0) + together[:, i]
    fixed = sum(float(times[-1]) for form, times in shared.items() if not form.varies)
    curves = [Curve.below(form, dense - steps, times) for form, times in shared.items() if form.varies]
    return LatencyTable(dense, fixed, curves, surfaces)


class _Profiler:
    """Cuts the network, describes it and times it."""

    def __init__(self, model: nn.Module, structure: Structure, config: LatencyConfig):
        self.model = model
        self.structure = structure
        self.config = config
        self.images = random_images(model, structure.input_shape, config)
        self.device = next(iter(leaves(self.images).values())).device
        self.cache = LatencyCache(self.device, config)
        self.known: dict[tuple[int, ...], list[Segment]] = {}

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
            if [s.module for s in self.known[key]] != [s.module for s in dense]:
                raise PlanError("cut, this network calls other modules than whole: its latency is no sum; budget FLOPs")
        return self.known[key]

    def measure(self, designs: Ints, timer: Timer | None) -> None:
        """Time what the cache does not hold, in rounds over all networks: a noisy spell then hits all alike.

        Args:
            designs: (networks, layers) kept.
            timer: as `take_table` takes it.
        """
        held = set(self.cache.times)
        networks = [w for w in np.unique(designs, axis=0) if not held.issuperset(s.key for s in self.segments(w))]
        samples: dict[str, list[float]] = {}
        with stopwatch(self.device, self.config) as clock:
            timer = timer or partial(time_segments, clock=clock)
            for _ in range(self.config.repeats if networks else 0):
                for kept in networks:
                    seconds = timer(self.network(kept), self.images)
                    for segment, value in zip(self.segments(kept), seconds, strict=True):
                        samples.setdefault(segment.key, []).append(1e6 * value)
        if samples:
            new = {key: statistics.median_low(values) for key, values in samples.items() if key not in held}
            self.cache.add({key: round(value, 3) for key, value in new.items()})

    def times(self, kept: Ints) -> Floats:
        """(networks, segments) nanoseconds."""
        times = self.cache.times
        return np.array([[round(1e3 * times[segment.key]) for segment in self.segments(w)] for w in kept], dtype=float)


def _shapes(profiler: _Profiler) -> tuple[Ints, Ints]:
    """(segments, 2) dense sizes, and (segments, 2, layers) how much of them goes with a unit of every layer."""
    dense = profiler.structure.units
    sizes = np.array([segment.sizes for segment in profiler.segments(dense)])
    units = np.zeros((*sizes.shape, len(dense)), dtype=np.int64)
    for i in range(len(dense)):
        alone = dense.copy()
        alone[i] = 1
        units[:, :, i] = (sizes - [segment.sizes for segment in profiler.segments(alone)]) // (dense[i] - 1)
    return sizes, units


def _colours(units: Ints) -> Ints:
    """(layers,) numbers, so that a segment's inputs and its outputs differ in theirs and can be cut apart.

    Layers that a segment takes, or gives, together have one. Where these wishes collide, the segment's two kept share
    theirs and are cut in step.

    Args:
        units: (segments, 2, layers).
    """
    sides = [segment > 0 for segment in units if segment.any(axis=1).all()]
    together = np.eye(units.shape[2], dtype=bool)
    for side in (row for pair in sides for row in pair):
        together |= np.outer(side, side)
    count, group = connected_components(together, directed=False)
    apart = {(int(group[a.argmax()]), int(group[b.argmax()])) for pair in sides for a, b in (pair, pair[::-1])}
    colour: list[int] = []
    for g in range(count):
        taken = {colour[other] for one, other in apart if one == g and other < g}
        colour.append(next(c for c in range(count) if c not in taken))
    found: Ints = np.array(colour)[group]
    return found


def _steps(dense: Ints) -> Ints:
    """(networks, layers) the kept that are measured, from one unit to all, every layer's own at once.

    Multiples of an eighth of the layer, whole blocks where it has many, each with the next wider one.
    """
    even = np.rint(np.outer(np.arange(1, STEPS), dense) / STEPS)
    even = np.where(dense >= STEPS * BLOCK, BLOCK * np.rint(even / BLOCK), even)
    pairs = np.stack([even, even + 1], axis=1).reshape(-1, len(dense))
    return np.concatenate([np.ones((1, len(dense))), pairs, dense[None]]).clip(1, dense).astype(np.int64)
