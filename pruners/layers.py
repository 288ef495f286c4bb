"""What a plan cuts: layers, the tensor slices that shrink with them, and what they cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

SOURCE = "source"  # of a module without a weight to narrow: which of its input's channels it takes

Role = Literal["out", "in", "through"]
Method = Literal["channel", "magnitude"]
Selection = Sequence[NDArray[np.int64]]  # for every layer the units that stay, ascending


class PlanError(ValueError):
    """A plan, a sparsity or a budget that does not fit the network; the message names value and remedy."""


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor that shrinks with a layer.

    Attributes:
        module: name of the module that owns the tensor, "" for the network itself.
        tensor: `weight`, `bias`, `running_mean`, …
        dim: the dimension that shrinks.
        role: `out`, a producer's filters; `in`, a consumer's inputs; `through`, whatever is done channel by
            channel in between (batch norm, depthwise convolution).
        positions: (width, k) where each unit of the layer lies along `dim`; k > 1 behind a flattening and
            for grouped convolutions.
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


@dataclass(frozen=True)
class Layer:
    """One step of the walk: a prunable dimension and everything coupled to it.

    Attributes:
        name: the first producer's name; `NAME.input` where the convolution NAME samples its input.
        width: units that can be removed one by one; a unit is one channel, or one channel in every group of a
            grouped convolution.
        slices: every tensor dimension that shrinks with it.
        trunk: whether it carries a residual sum, so that several producers share one choice of channels.
        sampled: whether a single consumer only takes less of what is there: the producers stay whole.
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    trunk: bool = False
    sampled: bool = False

    @property
    def module(self) -> str:
        """The convolution or linear layer that stands for it: its first producer, or the one that samples."""
        return self.slices[0].module if self.sampled else self.name

    def weights(self, role: Role) -> list[Slice]:
        """The weight tensors of its producers (`out`) or consumers (`in`)."""
        return [s for s in self.slices if s.role == role and s.tensor == "weight"]

    @property
    def producers(self) -> list[str]:
        """The modules whose outputs these units are."""
        return [part.module for part in self.weights("out")]

    @property
    def members(self) -> list[str]:
        """`module.tensor:dim` of everything coupled: what the fingerprint of a plan is made of."""
        return sorted({f"{s.parameter}:{s.dim}" for s in self.slices})


@dataclass(frozen=True)
class Operation:
    """A convolution or linear layer as the cost model sees it.

    Attributes:
        module: its name.
        positions: how many times its weight is applied to one image, over all calls.
        shape: of its weight, dense.
        output: (height, width) of its last output, (1, 1) for a vector.
        stride: along the first spatial dimension.
    """

    module: str
    positions: int
    shape: tuple[int, ...]
    output: tuple[int, int]
    stride: int

    @property
    def flops(self) -> int:
        """Multiply-accumulates an image, dense."""
        return self.positions * int(np.prod(self.shape))


class Total(Protocol):
    """A cost as a function of the layers' widths (layers,), integer or real; it never falls where a width grows."""

    def total(self, widths: NDArray[Any]) -> Any:
        """The cost."""
        ...


@dataclass(frozen=True)
class Structure:
    """A network's layers in the order of the walk, and its cost as a function of their widths.

    Attributes:
        layers: what may be cut.
        uncut: every producer that is left whole, with the reason; one that is coupled to another names it.
        operations: every convolution and linear layer, in the order of execution.
        shapes: every parameter's dense shape, by name.
        input_shape: (C, H, W) of one image.
        latency: a `LatencyTable` where latency counts, too.
        method: of the plans that fit it.
    """

    method: ClassVar[Method] = "channel"

    layers: tuple[Layer, ...]
    uncut: Mapping[str, str]
    operations: tuple[Operation, ...]
    shapes: Mapping[str, tuple[int, ...]]
    input_shape: tuple[int, ...]
    latency: Total | None = field(default=None, compare=False)

    @property
    def widths(self) -> NDArray[np.int64]:
        """(layers,) dense widths."""
        return np.array([layer.width for layer in self.layers], dtype=np.int64)

    def index(self, name: str) -> int:
        """Position of a layer in the walk."""
        return next(i for i, layer in enumerate(self.layers) if layer.name == name)

    def cost(self, kind: str, widths: NDArray[np.int64] | Sequence[int]) -> int:
        """What a network of these widths costs, counted with integers.

        Args:
            kind: `flops` (multiply-accumulates an image), `params`, or `latency` (nanoseconds a batch, by the table).
            widths: (layers,) units kept.
        """
        total: float = self._terms[kind].total(np.asarray(widths, dtype=np.int64))
        return round(total)

    def relaxed_cost(self, kind: str, widths: NDArray[np.float64]) -> float:
        """The cost as if widths were real numbers."""
        return float(self._terms[kind].total(widths))

    def fraction(self, kind: str, widths: NDArray[np.int64] | Sequence[int]) -> float:
        """The cost as a fraction of the dense network's."""
        return self.cost(kind, widths) / self.cost(kind, self.widths)

    def fractions(self, widths: NDArray[np.int64] | Sequence[int]) -> dict[str, float]:
        """The fraction of every kind of cost that is counted here, by kind."""
        return {kind: self.fraction(kind, widths) for kind in self._terms}

    def unit_costs(self, kind: str) -> list[NDArray[np.float64]]:
        """For every layer, (width,), what its units add to the cost one after the other, where all others are whole.

        The first unit, which is never spared, counts as the second one does.
        """
        if kind not in self._unit_costs:
            self._unit_costs[kind] = []
            for index, width in enumerate(self.widths):
                alone = np.tile(self.widths, (width, 1))
                alone[:, index] = np.arange(1, width + 1)
                added = np.diff([float(self.cost(kind, widths)) for widths in alone], prepend=np.nan)
                added[0] = added[1] if width > 1 else 1.0
                self._unit_costs[kind].append(added)
        return self._unit_costs[kind]

    @cached_property
    def _unit_costs(self) -> dict[str, list[NDArray[np.float64]]]:
        return {}

    @cached_property
    def _terms(self) -> Mapping[str, Total]:
        operations = {f"{op.module}.weight": op.positions for op in self.operations}
        elsewhere = sum(op.flops for op in self.operations if f"{op.module}.weight" not in self.shapes)  # tied weights
        return {
            "flops": _Cost(self, operations, elsewhere),
            "params": _Cost(self, dict.fromkeys(self.shapes, 1)),
            **({} if self.latency is None else {"latency": self.latency}),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, widths, coupling and shapes: equal for networks that a plan fits alike."""
        text = json.dumps([[layer.name, layer.width, layer.members] for layer in self.layers])
        shapes = json.dumps(sorted((name, list(shape)) for name, shape in self.shapes.items()))
        return hashlib.sha256((text + shapes).encode()).hexdigest()[:16]

    def check_widths(self, widths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The widths as an array.

        Raises:
            PlanError: wrong number of layers, or a width outside [1, dense width].
        """
        array = np.asarray(widths, dtype=np.int64)
        if array.shape != (len(self.layers),):
            raise PlanError(f"{array.size} widths for a network of {len(self.layers)} layers")
        for layer, width in zip(self.layers, array, strict=True):
            if not 1 <= width <= layer.width:
                raise PlanError(f"layer {layer.name}: width {width} is outside 1 … {layer.width}")
        return array

    def cut_alone(self, index: int, order: NDArray[np.int64], sparsity: float) -> Selection:
        """One layer cut to a sparsity, at least one unit left; the others whole.

        Args:
            index: of the layer in the walk.
            order: (width,) its units from the most to the least important.
            sparsity: fraction removed, in [0, 1).
        """
        keep = np.sort(order[: max(1, round((1.0 - sparsity) * self.layers[index].width))])
        return [keep if i == index else np.arange(layer.width) for i, layer in enumerate(self.layers)]

    def kept_positions(self, selection: Selection) -> dict[tuple[str, int], NDArray[np.int64]]:
        """(parameter, dim) → positions that stay, ascending, for every slice that shrinks."""
        stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
        for layer, keep in zip(self.layers, selection, strict=True):
            if len(keep) == layer.width:
                continue
            gone = np.ones(layer.width, dtype=bool)
            gone[keep] = False
            for part in layer.slices:
                mask = stays.setdefault((part.parameter, part.dim), np.ones(part.size, dtype=bool))
                mask[part.positions[gone]] = False
        return {key: np.flatnonzero(mask) for key, mask in stays.items()}


@dataclass(frozen=True)
class WeightStructure(Structure):
    """A network's weight tensors as layers whose units are single weights: no slice shrinks, zeros are counted.

    A layer bears the parameter's name; an operation the name of the first module that uses it, with the positions of
    all that share it.
    """

    method: ClassVar[Method] = "magnitude"

    @cached_property
    def _terms(self) -> Mapping[str, Total]:
        positions = {f"{op.module}.weight".removeprefix("."): op.positions for op in self.operations}
        flops = np.array([positions.get(layer.name, 0) for layer in self.layers], dtype=np.int64)
        params = sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())
        return {
            "flops": _WeightCost(flops, sum(op.flops for op in self.operations) - int(flops @ self.widths)),
            "params": _WeightCost(np.ones_like(flops), params - int(self.widths.sum())),
        }


@dataclass(frozen=True)
class _WeightCost:
    """Fixed + Σ over tensors of factor · weights kept."""

    factor: NDArray[np.int64]
    fixed: int

    def total(self, widths: NDArray[Any]) -> Any:
        return self.fixed + self.factor @ widths


class _Cost:
    """Σ over tensors of factor · Π over dims of (size − Σ over layers of removed units · positions a unit)."""

    def __init__(self, structure: Structure, factors: Mapping[str, int], fixed: int = 0):
        self.dense = structure.widths
        self.fixed = fixed
        slots = {
            (part.parameter, part.dim): [0] * len(structure.layers)
            for layer in structure.layers
            for part in layer.slices
        }
        for i, layer in enumerate(structure.layers):
            for part in layer.slices:
                slots[part.parameter, part.dim][i] += part.positions.shape[1]
        factor, size, units = [], [], []
        for name, shape in structure.shapes.items():
            if name not in factors:
                continue
            dims = [dim for dim in range(len(shape)) if (name, dim) in slots]
            whole = int(np.prod([n for dim, n in enumerate(shape) if dim not in dims], dtype=np.int64))
            if not dims:
                self.fixed += factors[name] * whole
                continue
            assert len(dims) <= 2, f"{name} shrinks along {len(dims)} dimensions"
            factor.append(factors[name] * whole)
            size.append([shape[dim] for dim in dims] + [1] * (2 - len(dims)))
            units.append([slots[name, dim] for dim in dims] + [[0] * len(self.dense)] * (2 - len(dims)))
        self.factor = np.array(factor, dtype=np.int64)
        self.size = np.array(size, dtype=np.int64).reshape(-1, 2)
        self.units = np.array(units, dtype=np.int64).reshape(-1, 2, len(self.dense))

    def total(self, widths: NDArray[Any]) -> Any:
        left = self.size - self.units @ (self.dense - widths)
        return self.fixed + (self.factor * left.prod(axis=1)).sum()
