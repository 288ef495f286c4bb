"""Bytes stored and bit operations as functions of the bits of every weight tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...networks.quantise.grid import FINEST, FULL
from .measures import Measures


class Size:
    """Bytes of the weights as they are stored: codes packed; what they stand for, and all else, as floats of 4 bytes.

    Running statistics are not counted: folded into the layers, a batch norm leaves one number a channel.

    Args:
        dense: what the tensors measure, and the whole network.
        shared: whether codes stand for values in a codebook of the tensor, not for multiples of an output's scale.
    """

    def __init__(self, dense: Measures, *, shared: bool = False):
        self.dense, self.shared = dense, shared

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) bits → (…) bytes; a tensor that scales or a codebook would make larger is stored as it is."""
        at = at or self.dense
        packed = np.ceil(at.weights * kept / 8) + 4 * (np.exp2(kept) if self.shared else at.outputs)
        whole = 4 * at.weights
        own = np.where(kept > FINEST, whole, np.minimum(packed, whole)).sum(axis=-1)
        return 4 * at.params - whole.sum(axis=-1) + own


class BitOperations:
    """Multiply-accumulates, times the bits of both factors; 32 by 32 where a weight is left as it is.

    Args:
        dense: what the tensors measure, and the whole network.
        positions: (layers,) at which each is laid on an image.
        inputs: (layers,) bits of what each is multiplied with, where its own are fewer than all.
    """

    def __init__(self, dense: Measures, positions: Sequence[int], inputs: Sequence[int]):
        self.dense = dense
        self.positions = np.array(positions, dtype=np.int64)
        self.inputs = np.array(inputs, dtype=np.int64)

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) bits → (…) operations of single bits."""
        at = at or self.dense
        macs = at.weights * self.positions
        factors = np.where(kept > FINEST, FULL * FULL, kept * self.inputs)
        return FULL * FULL * (at.flops - macs.sum(axis=-1)) + (macs * factors).sum(axis=-1)
