"""Bytes stored and bit operations as functions of the bits of every weight tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...networks.quantise.grid import FINEST, FULL


class Size:
    """Bytes of the weights as they are stored: codes packed, a float a scale, and everything else as floats of 4 bytes.

    Running statistics are not counted: folded into the layers, a batch norm leaves one number a channel.

    Args:
        layers: the tensors, as `BitLayer` has them.
        params: of the whole network.
    """

    def __init__(self, layers: Sequence[Any], params: int):
        self.weights = np.array([layer.weights for layer in layers], dtype=np.int64)
        self.rows = np.array([layer.rows for layer in layers], dtype=np.int64)
        self.fixed = 4 * (params - int(self.weights.sum()))

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) bits → (…) bytes; a tensor that its scales would make larger is stored as it is."""
        packed = np.ceil(self.weights * kept / 8) + 4 * self.rows
        whole = 4 * self.weights
        return self.fixed + np.where(kept > FINEST, whole, np.minimum(packed, whole)).sum(axis=-1)


class BitOperations:
    """Multiply-accumulates, times the bits of both factors; 32 by 32 where a weight is left as it is.

    Args:
        layers: the tensors, as `BitLayer` has them.
        macs: of the whole network.
    """

    def __init__(self, layers: Sequence[Any], macs: int):
        self.macs = np.array([layer.weights * layer.positions for layer in layers], dtype=np.int64)
        self.inputs = np.array([layer.inputs for layer in layers], dtype=np.int64)
        self.fixed = FULL * FULL * (macs - int(self.macs.sum()))

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) bits → (…) operations of single bits."""
        factors = np.where(kept > FINEST, FULL * FULL, kept * self.inputs)
        return self.fixed + (self.macs * factors).sum(axis=-1)
