"""Files timed in their runtimes, in turn, so that a noisy machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..networks.world import undisturbed

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""A file that was opened: input tensors (N, …) in the file's order → output tensors in its order."""


def milliseconds(
    runs: Mapping[str, Run], images: Mapping[str, Sequence[Tensor]], *, threads: int = 1, passes: int = 25
) -> dict[str, float]:
    """Median milliseconds of a pass of each.

    One thread is timed by the processor time that the process gets, whichever of its threads works; several by the
    wall. Runtimes have the threads that they were opened with, torch those given here.

    Args:
        runs: opened files by name.
        images: input tensors for each.
        threads: that all of them have.
        passes: counted, after three that warm up.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    with undisturbed(threads):
        for number in range(passes + 3):
            for name, run in runs.items():
                start = clock()
                run(images[name])
                if number >= 3:
                    times[name].append(1000.0 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}
