"""FLOPs and parameters as functions of what is kept, and what a network computes, counted once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...networks.attention import HeadAttention
from ...networks.norms import LAYERS, TRANSPOSED, channel_dim
from ...networks.world import without_fast_attention
from ...training.inputs import Inputs, call, taken
from ..structure import CostModel
from .measures import Measures, kernel_sizes

_WEIGHTS: dict[Any, tuple[str, ...]] = {  # those that are laid on an input, where it is not one `weight`
    HeadAttention: ("in_proj_weight",),
    nn.RNNBase: ("weight_ih_l0", "weight_ih_l0_reverse"),
}
_COUNTED = (*LAYERS, *_WEIGHTS)


@dataclass(frozen=True)
class Operation:
    """A convolution or linear layer, what goes into attention or a recurrent layer, as the cost model sees it.

    Attributes:
        module: its name.
        parameter: its weight's name; of one that several share, that in the first of them.
        positions: how many times its weight is applied to one image, over all calls.
        shape: of its weight, dense.
        output: (height, width) of its last output, (1, 1) for a vector.
        stride: along the first spatial dimension.
    """

    module: str
    parameter: str
    positions: int
    shape: tuple[int, ...]
    output: tuple[int, int]
    stride: int

    @property
    def flops(self) -> int:
        """Multiply-accumulates an image, dense."""
        return self.positions * int(np.prod(self.shape))


def count_operations(model: nn.Module, example: Inputs) -> list[Operation]:
    """Every convolution and linear layer with the number of positions it is applied at, in order of execution.

    Args:
        model: in eval mode.
        example: images (N, C, H, W).
    """
    example = taken(example, slice(1))  # of what is computed once, for however many images, one pays all
    names = {module: name for name, module in model.named_modules()}
    parameters: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[tuple[str, str], Operation] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        at = inputs[0] if isinstance(module, (*TRANSPOSED, nn.RNNBase)) else _first(output)  # where weights are laid on
        channels = at.shape[channel_dim(module)]
        positions = at.numel() // channels
        stride = getattr(module, "stride", None)
        for tensor in _WEIGHTS.get(_kind(module), ("weight",)):
            weight = getattr(module, tensor, None)
            if weight is not None:
                key = (names[module], tensor)
                found[key] = Operation(
                    module=names[module],
                    parameter=parameters.get(weight, ".".join(key).removeprefix(".")),
                    positions=positions + (found[key].positions if key in found else 0),
                    shape=tuple(weight.shape),
                    output=(int(at.shape[-2]), int(at.shape[-1])) if at.dim() == 4 else (1, positions),
                    stride=int(stride[0]) if isinstance(stride, tuple) else 1,
                )

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, _COUNTED)]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in _WEIGHTS if isinstance(module, kind)), None)


def _first(output: Any) -> Tensor:
    """The tensor that a module returns, or the first of several."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def uncounted_flops(model: nn.Module, example: Inputs, operations: Sequence[Operation]) -> int:
    """Multiply-accumulates an image that torch's own counter sees beyond these operations.

    Transposed and functional convolutions, attention's products, matrix products: nothing of it is cut, all of it is
    paid, and a fraction that left it out would flatter. torch counts a multiply-accumulate as two operations.

    Args:
        model: in eval mode.
        example: images (N, C, H, W), N ≥ 1.
        operations: what was counted by module.
    """
    example = taken(example, slice(1))
    with (
        warnings.catch_warnings(action="ignore"),  # of settings that this build of torch lacks
        torch.backends.mkldnn.flags(enabled=False),
        without_fast_attention(),  # fused kernels are not counted; others compute the same
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        call(model, example)
    seen: int = counter.get_total_flops() // 2
    return max(0, seen - sum(op.flops for op in operations))


class ChannelCost:
    """Σ over tensors of factor · Π over dims of (size − Σ over layers of removed units · positions a unit).

    Args:
        layers: with slices, as `ChannelStructure` has them.
        shapes: every parameter's dense shape.
        factors: tensor → what each of its elements costs; tensors that are not named cost nothing.
        fixed: what is paid in any case.
        besides: (layers,) what each unit costs that is in no tensor.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        shapes: Mapping[str, tuple[int, ...]],
        factors: Mapping[str, int],
        fixed: int = 0,
        besides: Sequence[int] = (),
    ):
        self.dense = np.array([layer.units for layer in layers], dtype=np.int64)
        self.besides = np.array(besides or [0] * len(layers), dtype=np.int64)
        self.fixed = fixed
        slots = {(part.parameter, part.dim): [0] * len(layers) for layer in layers for part in layer.slices}
        for i, layer in enumerate(layers):
            for part in layer.slices:
                slots[part.parameter, part.dim][i] += part.positions.shape[1]
        factor, size, units = [], [], []
        for name, shape in shapes.items():
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
        self.units = np.array(units, dtype=np.int64).reshape(-1, len(self.dense)).T  # (layers, 2 · tensors)

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) → (…)."""
        left = self.size - ((self.dense - kept) @ self.units).reshape(*kept.shape[:-1], -1, 2)
        return self.fixed + (self.factor * left.prod(axis=-1)).sum(axis=-1) + kept @ self.besides


class ChannelMeasures:
    """What some weights measure, as a function of what is kept; see `measures.Measured`.

    Args:
        layers: with slices, as `ChannelStructure` has them.
        names: of the tensors.
        shapes: every parameter's dense shape.
        costs: `flops` and `params`, of the same layers.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        names: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        costs: Mapping[str, Callable[[NDArray[Any]], Any]],
    ):
        self.costs = costs["flops"], costs["params"]
        self.dense = np.array([layer.units for layer in layers], dtype=np.int64)
        self.size = np.array([shapes[name][:2] for name in names], dtype=np.int64).reshape(-1, 2)
        self.kernel = kernel_sizes([shapes[name] for name in names])
        places = {(name, dim): 2 * i + dim for i, name in enumerate(names) for dim in (0, 1)}
        self.units = np.zeros((len(layers), 2 * len(names)), dtype=np.int64)
        for i, layer in enumerate(layers):
            for part in layer.slices:
                if (part.parameter, part.dim) in places:
                    self.units[i, places[part.parameter, part.dim]] += part.positions.shape[1]

    def __call__(self, kept: NDArray[Any]) -> Measures:
        """(…, layers) units kept → sizes (…, tensors)."""
        left = self.size - ((self.dense - kept) @ self.units).reshape(*kept.shape[:-1], -1, 2)
        return Measures(left[..., 0], left[..., 1], self.kernel, *(cost(kept) for cost in self.costs))


class LinearCost:
    """Fixed + Σ over layers of factor · units kept.

    Args:
        factors: (layers,) cost of a unit.
        fixed: what is paid in any case.
    """

    def __init__(self, factors: NDArray[Any], fixed: float = 0):
        self.factors = factors
        self.fixed = fixed

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) → (…)."""
        return self.fixed + kept @ self.factors


class BranchCost:
    """A cost without that of the branches that are gone: those of which a layer keeps 0 units.

    Args:
        whole: as if all were there.
        parts: for every branch its layers, its part of that, and what takes its place.
    """

    def __init__(self, whole: CostModel, parts: Sequence[tuple[Sequence[int], CostModel, CostModel]]):
        self.whole = whole
        self.parts = [(part, left) for _, part, left in parts]
        self.layers = np.array([layer for layers, *_ in parts for layer in layers], dtype=np.int64)
        self.starts = np.cumsum([0, *(len(layers) for layers, *_ in parts)])[:-1]

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) → (…); between 0 units and 1 it rises with the number, as all costs do."""
        total = self.whole(kept)
        there = np.minimum.reduceat(kept[..., self.layers], self.starts, axis=-1).clip(0, 1)
        for number in np.flatnonzero((there < 1).reshape(-1, len(self.parts)).any(axis=0)):
            part, left = self.parts[number]
            total = total - (1 - there[..., number]) * (part(kept) - left(kept))
        return total
