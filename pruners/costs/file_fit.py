"""How the times of parts, each a file by itself, become those of whole networks: by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import lsq_linear

from .latency_table import Floats, Ints

LEAST = 0.3  # of a common scale: below it, others are not held any closer to it


def line(kept: Ints, sums: Floats, times: Floats) -> Floats:
    """(3,) a, b and c, so that a + b · Σ parts + c · Σ elements is near the time of whole networks, relative to it.

    A network counts by how little a wider one outruns it: no plan keeps so many then.

    Args:
        kept: (networks, layers) units.
        sums: (networks, 2) of its parts' nanoseconds, and of their elements.
        times: (networks,) nanoseconds of the whole.
    """
    wider = (kept >= kept[:, None]).all(axis=2)
    weights = (np.where(wider, times, np.inf).min(axis=1) / times) ** 2
    matrix = np.column_stack([np.ones(len(kept)), sums]) * (weights / times)[:, None]
    scale = np.abs(matrix).max(axis=0).clip(np.finfo(float).tiny)
    found: Floats = lsq_linear(matrix / scale, weights, bounds=([0.0, 0.0, -np.inf], np.inf)).x / scale
    return found


def scales(sums: Floats, times: Floats, alike: float) -> tuple[float, Floats]:
    """What does not change, in nanoseconds, and (groups,) by what the others' sums are to be multiplied.

    Below 0 where a network that has less of a group takes longer.

    Args:
        sums: (networks, groups) nanoseconds.
        times: (networks,) nanoseconds of the whole.
        alike: a scale twice the common one counts as a time that is off by so much: what timings do not clearly say of
            a group is left as it is with all.
    """
    matrix = np.column_stack([np.full(len(times), times.max()), sums]) / times[:, None]
    together = np.column_stack([matrix[:, 0], matrix[:, 1:].sum(axis=1)])
    common = float(np.linalg.lstsq(together, np.ones(len(times)))[0][1])
    prior = alike / max(abs(common), LEAST) * np.eye(matrix.shape[1])[1:]
    wanted = np.concatenate([np.ones(len(times)), common * prior.sum(axis=1)])
    found = np.linalg.lstsq(np.vstack([matrix, prior]), wanted)[0]
    return float(times.max() * found[0]), found[1:]


def chains(dense: Ints, less: Ints, links: int) -> list[Ints]:
    """Two of (links + 1, layers) kept: all units, link by link fewer, `less`; from the first on, and from the last."""
    cut = [link for link in np.array_split(np.flatnonzero(less < dense), links) if len(link)]
    return [_chain(dense, less, order) for order in (cut, cut[::-1])]


def _chain(dense: Ints, less: Ints, order: Sequence[Ints]) -> Ints:
    rows = [dense]
    for link in order:
        rows.append(rows[-1].copy())
        rows[-1][link] = less[link]
    return np.array(rows)
