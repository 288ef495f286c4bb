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
        tensors: (tensors,) places of the layers that are the bits of a tensor.
        shared: whether codes stand for values in a codebook of the tensor, not for multiples of an output's scale.
    """

    def __init__(self, dense: Measures, tensors: Sequence[int], *, shared: bool = False):
        self.dense, self.shared = dense, shared
        self.tensors = np.array(tensors, dtype=np.int64)

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) bits → (…) bytes; a tensor that scales or a codebook would make larger is stored as it is."""
        at, bits = at or self.dense, kept[..., self.tensors]
        packed = np.ceil(at.weights * bits / 8) + 4 * (np.exp2(bits) if self.shared else at.outputs)
        whole = 4 * at.weights
        own = np.where(bits > FINEST, whole, np.minimum(packed, whole)).sum(axis=-1)
        return 4 * at.params - whole.sum(axis=-1) + own


class BitOperations:
    """Multiply-accumulates, times the bits of both factors, 32 of what is left as it is.

    Args:
        dense: what the tensors measure, and the whole network.
        tensors: (tensors,) places of the layers that are the bits of a tensor.
        factors: of every tensor: positions at which it is laid on an image; bits of what it is multiplied with, where
            its own are fewer than all; and the place of the layer that those are, where they are a choice.
    """

    def __init__(self, dense: Measures, tensors: Sequence[int], factors: Sequence[tuple[int, int, int | None]]):
        self.dense = dense
        self.tensors = np.array(tensors, dtype=np.int64)
        self.positions = np.array([positions for positions, _, _ in factors], dtype=np.int64)
        self.fixed = np.array([bits for _, bits, _ in factors], dtype=np.int64)
        self.chosen = np.array([place is not None for _, _, place in factors], dtype=bool)
        self.inputs = np.array([place or 0 for _, _, place in factors], dtype=np.int64)

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) bits → (…) operations of single bits."""
        at = at or self.dense
        macs = at.weights * self.positions
        bits, inputs = (np.where(kept > FINEST, FULL, kept)[..., places] for places in (self.tensors, self.inputs))
        inputs = np.where(self.chosen, inputs, np.where(bits > FINEST, FULL, self.fixed))
        return FULL * FULL * (at.flops - macs.sum(axis=-1)) + (macs * bits * inputs).sum(axis=-1)
