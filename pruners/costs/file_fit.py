"""How the times of parts, each a file by itself, become those of whole networks: least squares, and what they leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import lsq_linear

from .latency_table import Floats, Ints

PRIOR = 0.01  # weight of scales near 1, where nothing tells of them
TINY = 1e-6  # of a part's time, that it takes more at every step
ROUNDS = 100


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


def scales(sums: Floats, times: Floats) -> tuple[float, Floats]:
    """What does not change, in nanoseconds, and (groups,) by what the others' sums are to be multiplied, 0 or more.

    Args:
        sums: (networks, groups) nanoseconds.
        times: (networks,) nanoseconds of the whole.
    """
    most = float(times.max())
    matrix = np.column_stack([np.full(len(times), most), sums]) / times[:, None]
    prior = PRIOR * np.eye(matrix.shape[1])[1:]
    wanted = np.concatenate([np.ones(len(times)), prior.sum(axis=1)])
    found = lsq_linear(np.vstack([matrix, prior]), wanted, bounds=(0.0, np.inf)).x
    return most * float(found[0]), found[1:]


def shares(parts: Floats, totals: Floats) -> Floats:
    """(networks, parts) nanoseconds that never fall from a network to the next wider one, and add up to the totals.

    What a network takes more than the one before goes to its parts as those by themselves take more, so that in the
    last each has its share of the whole (iterative proportional fitting, Deming & Stephan 1940). Of networks and parts
    none counts for more than the wider ones take.

    Args:
        parts: (networks, parts) nanoseconds, from the narrowest on.
        totals: (networks,) nanoseconds.
    """
    parts, rises = _envelope(parts), np.diff(_envelope(totals).clip(0.0), prepend=0.0)
    more = np.diff(parts, axis=0, prepend=0.0) + TINY * parts[-1]
    last = parts[-1] * _ratio(rises.sum(), parts[-1].sum())
    for _ in range(ROUNDS):
        more *= _ratio(last, more.sum(axis=0))
        more *= _ratio(rises, more.sum(axis=1))[:, None]
    return np.cumsum(more, axis=0)


def edge(alone: Floats, together: Floats, dense: Floats, shared: Floats, whole: Floats) -> Floats:
    """(segments,) of networks cut on one side: what that is of the cut on both sides, as the parts by themselves say.

    Two edges multiplied, over the whole, are the time of what is cut on both.

    Args:
        alone: (segments,) parts of the network that is cut on one side.
        together: of that cut on both.
        dense: of the dense one.
        shared: what they are to take, cut on both sides.
        whole: what they are to take in the dense network.
    """
    one, both = _left(alone, dense), _left(together, dense)
    part = np.where(both < 0.0, one / np.minimum(both, -TINY), 0.5).clip(0.0, 1.0)
    found: Floats = whole * np.exp(part * _left(shared, whole))
    return found


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


def _envelope(times: Floats) -> Floats:
    """The highest (networks, …) that never falls and lies nowhere above what was measured."""
    found: Floats = np.minimum.accumulate(times[::-1])[::-1]
    return found


def _ratio(of: Floats, to: Floats) -> Floats:
    """0 where there is nothing to compare with."""
    return np.divide(of, to, out=np.zeros(np.shape(to)), where=np.asarray(to) > 0.0)


def _left(times: Floats, whole: Floats) -> Floats:
    """Logarithm of what is left of the whole, 0 where nothing was there."""
    found: Floats = np.log(np.where(whole > 0.0, _ratio(times, whole), 1.0).clip(TINY, 1.0))
    return found
