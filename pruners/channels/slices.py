"""Which slices of which tensors shrink together, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..costs.counts import Operation
from ..structure import Layer, Structure

# of a layer, or of one inside attention or a recurrent layer: rows are its outputs, columns its inputs
WEIGHTS = ("weight", "in_proj_weight", "weight_ih_l0", "weight_ih_l0_reverse")
SOURCE = "source"  # of a module without a weight to narrow: which of its input's channels it takes

Role = Literal["out", "in", "through"]
Selection = Sequence[NDArray[np.int64]]  # for every layer the units that stay, ascending
Positions = Mapping[tuple[str, int], NDArray[np.int64]]  # (parameter, dim) → positions that stay, ascending


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor that shrinks with a layer.

    Attributes:
        module: name of the module that owns the tensor, "" for the network itself.
        tensor: `weight`, `bias`, `running_mean`, …
        dim: the dimension that shrinks.
        role: `out`, a producer's filters; `in`, a consumer's inputs; `through`, whatever is done channel by
            channel in between (batch norm, depthwise convolution).
        positions: (units, k) where each unit of the layer lies along `dim`; k > 1 behind a flattening and
            for grouped convolutions.
        size: of the dimension, dense.
    """

    module: str
    tensor: str
    dim: int
    role: Role
    positions: NDArray[np.int64]
    size: int

    @property
    def parameter(self) -> str:
        """The tensor's name in the state dict."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(frozen=True, kw_only=True)
class ChannelLayer(Layer):
    """A prunable dimension and everything coupled to it; its members follow from the slices.

    It bears the first producer's name; `NAME.input` where the convolution NAME samples its input. A unit is one
    channel, or one channel in every group of a grouped convolution.

    Attributes:
        slices: every tensor dimension that shrinks with it.
        product_flops: multiply-accumulates an image a unit that no weight accounts for (attention's products).
        trunk: whether it carries a residual sum, so that several producers share one choice of channels.
        sampled: whether a single consumer only takes less of what is there: the producers stay whole.
    """

    slices: tuple[Slice, ...]
    product_flops: int = 0
    trunk: bool = False
    sampled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        own = self.weights("in" if self.sampled else "out")
        members = {f"{s.parameter}:{s.dim}" for s in self.slices}
        object.__setattr__(self, "members", tuple(sorted(members)))
        object.__setattr__(self, "parameters", tuple(part.parameter for part in own))
        object.__setattr__(self, "consumers", tuple(dict.fromkeys(part.module for part in self.weights("in"))))

    @property
    def module(self) -> str:
        """The convolution or linear layer that stands for it: its first producer, or the one that samples."""
        return self.slices[0].module if self.sampled else self.name

    def weights(self, role: Role) -> list[Slice]:
        """The weight tensors of its producers (`out`) or consumers (`in`)."""
        return [s for s in self.slices if s.role == role and s.tensor in WEIGHTS]

    @property
    def producers(self) -> list[str]:
        """The modules whose outputs these units are."""
        return [part.module for part in self.weights("out")]


@dataclass(frozen=True, kw_only=True)
class ChannelStructure(Structure):
    """A network's channels as layers.

    Attributes:
        operations: every convolution and linear layer, in the order of execution.
    """

    method: str = "channels"
    layers: tuple[ChannelLayer, ...]
    operations: tuple[Operation, ...]

    def alone(self, index: int, order: NDArray[np.int64], count: int) -> Selection:
        """One layer keeps the first `count` of its units in this order (units,); the others stay whole."""
        keep = np.sort(order[:count])
        return [keep if i == index else np.arange(layer.units) for i, layer in enumerate(self.layers)]

    def positions(self, selection: Selection) -> dict[tuple[str, int], NDArray[np.int64]]:
        """(parameter, dim) → positions that stay, ascending, for every slice that shrinks.

        Of a branch that is gone there is only its constant (`networks/constant.py`).
        """
        stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
        gone = self.gone([len(keep) for keep in selection])
        constants = {f"{branch.exit}.weight": f"{branch.exit}.mean" for branch in gone}
        absent = frozenset[str]().union(*(branch.modules for branch in gone))
        for layer, keep in zip(self.layers, selection, strict=True):
            if len(keep) == layer.units:
                continue
            out = np.ones(layer.units, dtype=bool)
            out[keep] = False
            for part in layer.slices:
                name = part.parameter
                if part.module in absent:
                    if name not in constants or part.dim:
                        continue
                    name = constants[name]
                mask = stays.setdefault((name, part.dim), np.ones(part.size, dtype=bool))
                mask[part.positions[out]] = False
        return {key: np.flatnonzero(mask) for key, mask in stays.items()}


def channel_layers(structure: Structure) -> tuple[ChannelLayer, ...]:
    """The layers of a structure that channels were found in."""
    return cast(ChannelStructure, structure).layers
