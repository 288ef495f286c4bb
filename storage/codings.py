"""What there is to tell of numbers: where those lie that are not zero, and which integers on a grid they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .huffman import Symbols

MOST_CODE = 128  # of a grid, in size: 8 bits
SKIP = 255  # of a gap: so many places go by, and none of them holds a value
MULTIPLES, ULPS = range(1, 17), (0, 1, -1, 2, -2)  # what a row's smallest value may be of its scale

Values = NDArray[np.float32]


def grid_of(rows: Values) -> tuple[Values, Symbols] | None:
    """(rows,) scales and (rows, n) integers whose product, in single precision, is what is given; none if there are
    none, with integers up to `MOST_CODE`."""
    if np.signbit(rows[rows == 0.0]).any():
        return None  # no integer is minus zero
    size = np.abs(rows)
    least = np.where(size > 0, size, np.inf).min(axis=1, initial=np.inf).astype(np.float32)
    scales, codes = np.zeros_like(least), np.zeros(rows.shape, dtype=np.int64)
    open_rows = np.flatnonzero(np.isfinite(least))
    if not np.isfinite(rows).all() or (size.max(axis=1, initial=0) > MOST_CODE * MULTIPLES[-1] * least).any():
        return None
    for multiple in MULTIPLES:
        for ulps in ULPS:
            if not len(open_rows):
                return scales, codes
            bits = (least[open_rows] / np.float32(multiple)).view(np.int32) + np.int32(ulps)
            scale = np.maximum(bits, 1).view(np.float32)
            tried = rows[open_rows]
            ratios = np.rint(tried / scale[:, None].astype(np.float64))
            integers = np.clip(ratios, -MOST_CODE - 1, MOST_CODE + 1).astype(np.int64)
            product = scale[:, None] * integers.astype(np.float32)
            fits = (product.view(np.int32) == tried.view(np.int32)).all(1) & (np.abs(integers).max(1) <= MOST_CODE)
            scales[open_rows[fits]], codes[open_rows[fits]] = scale[fits], integers[fits]
            open_rows = open_rows[~fits]
    return None if len(open_rows) else (scales, codes)


def gap_symbols(present: Symbols) -> Symbols:
    """What tells (values,) positions: to each the way from the one before, less one, and a `SKIP` for every 255."""
    ways = np.diff(present, prepend=-1) - 1
    skips = ways // SKIP
    symbols = np.full(len(present) + int(skips.sum()), SKIP, dtype=np.int64)
    symbols[np.arange(len(present)) + np.cumsum(skips)] = ways % SKIP
    return symbols


def positions_of(symbols: Symbols) -> Symbols:
    """The positions that `gap_symbols` told."""
    at = np.cumsum(np.where(symbols == SKIP, SKIP, symbols + 1)) - 1
    return np.asarray(at[symbols != SKIP])
