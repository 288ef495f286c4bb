"""Take a network's latency table on this machine.

The network is cut to a few dozen combinations of units kept and runs as it always does, timed segment by segment; in
another runtime than torch its parts are timed as files (`FileProfiler`).
Segments that do the same are one, and share their samples; the median counts, for medians of parts add up to that of
the whole where minima do not. Kernels work on blocks of 8 or 16 channels, so that curves are stairs: they are known at
pairs of sizes, a multiple and the next one, and straight in between. So they are of ranks: two layers stand in a
layer's place, each timed as any other, and change no size of their neighbours'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import nn

from ...configs import LatencyConfig
from ..structure import CostModel, PlanError, Structure
from .counts import BranchCost, LinearCost
from .file_profiler import FileProfiler
from .int8_profiler import Int8Profiler
from .latency_files import in_torch
from .latency_table import Curve, Floats, Form, Ints, LatencyTable, LayerTimes
from .profiler import BLOCK, Bar, Profiler, Timer, no_bar

STEPS = 8  # of a layer's width, that a curve is known at


def take_table(
    model: nn.Module,
    structure: Structure,
    config: LatencyConfig | None = None,
    *,
    timer: Timer | None = None,
    bar: Bar = no_bar,
) -> CostModel:
    """Measure what the cache does not hold, and make the table.

    Args:
        model: dense, in eval mode; not changed.
        structure: its layers.
        config: images a pass, threads, passes, memory format; the runtime.
        timer: seconds of every segment of one pass of a network over a batch; none really measures.
        bar: shows how many passes are timed, or files made and timed in a runtime other than torch.

    Raises:
        PlanError: the network calls other modules when it is cut.
        ValueError: the runtime is not there, or does not take a part of the network.
    """
    if structure.first_units is None:
        raise PlanError(f"budget.latency: no latency table for method: {structure.method}; budget flops or params")
    config = config or LatencyConfig()
    if in_torch(config):
        kind = Profiler
    else:  # whether two layers are faster than one, only files of layers say
        kind = Int8Profiler if config.precision == "int8" and not structure.apart else FileProfiler
    profiler = kind(model, structure, config, bar)
    return _layer_times(profiler, timer) if structure.apart else _sizes_table(profiler, timer)


def _layer_times(profiler: Profiler, timer: Timer | None) -> LayerTimes:
    """Of layers that stand apart: each as it is where it keeps more than `Structure.apart`."""
    dense, most = profiler.structure.units, profiler.structure.apart
    steps = _steps(np.array(most))
    profiler.measure(steps, dense[None], timer)
    (whole,), less = profiler.layer_times(dense[None]), profiler.layer_times(steps)
    times = []
    for i, units in enumerate(dense):
        knots, first = np.unique(steps[:, i], return_index=True)
        kept = np.arange(units + 1)
        times.append(np.where(kept > most[i], whole[i], np.interp(kept, knots, less[first, i])))
    return LayerTimes(profiler.base + float(whole[-1]), times)


def _sizes_table(profiler: Profiler, timer: Timer | None) -> CostModel:
    """Of layers that change each other's sizes."""
    structure, dense = profiler.structure, profiler.structure.units
    sizes, units = _shapes(profiler)
    colours = _colours(units)
    steps = _steps(dense)
    edges = [np.where(colours == colour, steps, dense) for colour in range(colours.max() + 1)]
    inside = [name for branch in structure.branches for name in branch.layers]
    gone = np.array([0 if layer.name in inside else layer.units for layer in structure.layers], dtype=np.int64)
    profiler.measure(steps, np.vstack(edges), timer, gone if inside else None)

    modules = [segment.module for segment in profiler.segments(dense)]
    branch_of = np.full(len(modules), -1)
    for number, branch in enumerate(structure.branches):
        branch_of[[module in branch.modules for module in modules]] = number
    together = profiler.times(steps)
    apart = [profiler.times(edge, steps) for edge in edges]

    def table(chosen: NDArray[np.bool_], fixed: float) -> LatencyTable:
        """Of some of the segments."""
        shared: dict[tuple[int, Form], Floats] = {}  # a branch's apart: what it costs is taken off where it is gone
        surfaces: list[tuple[Curve, Curve, float]] = []
        for i in np.flatnonzero(chosen):
            pair = [int(colours[np.argmax(side)]) for side in units[i]]
            if units[i].any(axis=1).all() and pair[0] != pair[1]:
                sides = np.eye(2, dtype=bool)
                forms = [Form.of(np.where(side, sizes[i], 1), units[i] * side[:, None]) for side in sides]
                first, second = (
                    Curve.below(f, dense - edges[c], apart[c][:, i]) for f, c in zip(forms, pair, strict=True)
                )
                surfaces.append((first, second, float(together[0, i])))
            else:
                key = int(branch_of[i]), Form.of(sizes[i], units[i])
                shared[key] = shared.get(key, 0.0) + together[:, i]
        fixed += sum(float(times[-1]) for (_, form), times in shared.items() if not form.varies)
        found = [Curve.below(form, dense - steps, times) for (_, form), times in shared.items() if form.varies]
        return LatencyTable(dense, fixed, found, surfaces)

    whole = table(np.ones(len(sizes), dtype=bool), profiler.base)
    if not structure.branches:
        return whole
    alone = profiler.left(gone)
    branches = [table(branch_of == number, 0.0) for number in range(len(structure.branches))]
    left = np.array([float(alone[branch_of == number].sum()) for number in range(len(branches))])
    rests = _rests(whole, branches, left, gone, profiler.total(gone))
    parts: list[tuple[list[int], CostModel, CostModel]] = []
    for branch, part, rest in zip(structure.branches, branches, rests, strict=True):
        parts.append(
            ([structure.index(name) for name in branch.layers], part, LinearCost(np.zeros(len(dense)), float(rest)))
        )
    return BranchCost(whole, parts)


def _rests(whole: LatencyTable, branches: Sequence[LatencyTable], left: Floats, gone: Ints, total: float) -> Floats:
    """(branches,) nanoseconds that each takes where it is gone, so that together they make the network without any.

    None takes more than where it keeps one unit, or keeping less would cost more; what one may not take, others do, by
    what each saves. Where layers outside of branches are cut, too, what is left shrinks with them, and never below 0.

    Args:
        whole: table of the network with all of its branches.
        branches: table of each.
        left: (branches,) what each is by itself thought to take where it is gone, below 0 where the network is spared
            more than what the branch takes.
        gone: (layers,) kept without branches.
        total: nanoseconds of that network.
    """
    one = np.ones_like(gone)

    def besides(kept: Ints) -> float:
        return float(whole(kept) - sum(part(kept) for part in branches))

    most = np.array([part(one) for part in branches])
    beyond = total - besides(gone)
    wanted = max(beyond, beyond * besides(np.minimum(gone, one)) / max(besides(gone), 1.0))
    saved = np.abs([part(whole.dense) for part in branches] - left).clip(np.finfo(float).tiny)
    left = np.minimum(left, most)
    for _ in branches:
        short = wanted - left.sum()
        takers = saved * (left < most) if short > 0.0 else saved
        left = np.minimum(left + short * takers / max(takers.sum(), np.finfo(float).tiny), most)
    return left


def _shapes(profiler: Profiler) -> tuple[Ints, Ints]:
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
