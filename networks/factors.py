"""A layer that is two: to a few features, and from those to the outputs; a product of low rank in place of a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..storage.reading import shown
from ..training.inputs import Inputs, call
from .copying import copied
from .norms import LAYERS, TRANSPOSED
from .own_convolutions import is_plain

Kind = Literal["channel", "spatial"]
Layer = nn.Conv1d | nn.Conv2d | nn.Linear
Parts = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""A matrix (rows, columns) and a rank → (rows, rank) and (rank, columns)."""


class Factorised(nn.Sequential):
    """Two layers in the place of one, both without a batch norm or an activation between them.

    `channel`: a k×k convolution to `rank` features, then a 1×1 (Zhang, Zou, He, Sun, TPAMI 2016); of a linear layer or
    a 1×1 convolution, the plain factorisation. `spatial`: a k×1 convolution to `rank` features, then a 1×k (Jaderberg,
    Vedaldi, Zisserman, BMVC 2014).

    Attributes:
        kind: which.
        rank: features between the two.
    """

    def __init__(self, first: Layer, second: Layer, kind: Kind):
        super().__init__(first, second)
        self.kind = kind

    @classmethod
    def of(cls, layer: Layer, rank: int, kind: Kind, parts: Parts | None = None) -> Factorised:
        """Of a layer's weight, what is nearest to it; the bias is the layer's own, and what is frozen stays frozen.

        `parts` makes two matrices of the weight's otherwise: `corners`.
        """
        weight = layer.weight
        options = {"device": weight.device, "dtype": weight.dtype}
        first, second = (build(**options) for build in _builders(layer, rank, kind))
        second.bias = layer.bias
        found = cls(first, second, kind).train(layer.training)
        found._put(*(parts or split)(matrix(weight.detach().double(), kind), rank))
        for part in found:
            part.weight.requires_grad_(weight.requires_grad)
        return found

    @property
    def rank(self) -> int:
        """Features between the two layers."""
        return int(self.factors[0].weight.shape[0])

    @property
    def factors(self) -> tuple[Layer, Layer]:
        """The two layers."""
        first, second = self
        return cast(Layer, first), cast(Layer, second)

    @property
    def bias(self) -> nn.Parameter | None:
        """Of the second layer."""
        return cast(nn.Parameter | None, self.factors[1].bias)

    @property
    def weight(self) -> Tensor:
        """The product, of the shape that the weight of one layer has."""
        first, second = (part.weight.double() for part in self.factors)
        left = second.movedim(1, -1).reshape(-1, self.rank)  # as `matrix` has its rows
        return unmatrix(left @ first.flatten(1), self.shape, self.kind).to(self.factors[0].weight.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the product: (outputs, inputs, …)."""
        first, second = (tuple(part.weight.shape) for part in self.factors)
        kernel = [a * b for a, b in zip(first[2:], second[2:], strict=True)]
        return (second[0], first[1], *kernel)

    @property
    def whole(self) -> Layer:
        """One layer that computes the same. Its weight is a copy; its bias is this one's."""
        first, second = cast(tuple[Any, Any], self.factors)
        weight = nn.Parameter(self.weight.detach(), requires_grad=first.weight.requires_grad)
        if isinstance(first, nn.Linear):
            whole: Layer = nn.Linear(1, 1, device="meta")
            whole.in_features, whole.out_features = first.in_features, second.out_features
        else:
            settings = {
                "stride": _times(first.stride, second.stride),
                "dilation": _times(first.dilation, second.dilation),
                "padding": first.padding if isinstance(first.padding, str) else _plus(first.padding, second.padding),
            }
            whole = type(first)(
                first.in_channels,
                second.out_channels,
                self.shape[2:],
                **settings,
                device="meta",
                padding_mode=first.padding_mode,
            )
        whole.weight, whole.bias = weight, second.bias
        return whole.train(self.training)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Be nearest to this weight, in the sum of squares; it, if its rank is no higher. In place, the bias stays.

        Both layers share the singular values, so that a step of training moves either as far.
        """
        self._put(*split(matrix(weight.double(), self.kind), self.rank))

    def _put(self, left: Tensor, right: Tensor) -> None:
        """Two matrices as the weights, (rows, rank) and (rank, columns) of `matrix`."""
        first, second = self.factors
        first.weight.data = right.reshape(first.weight.shape).to(first.weight)
        shape = second.weight.shape
        second.weight.data = left.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous().to(second.weight)


def full_rank(shape: tuple[int, ...], kind: Kind) -> int:
    """The rank at which a weight of this shape is whatever it was."""
    rows, columns = (math.prod(part) for part in sides(shape, kind))
    return min(rows, columns)


def matrix(weight: Tensor, kind: Kind) -> Tensor:
    """A weight (outputs, inputs, …) as the matrix whose rank is meant.

    `channel`: (outputs, inputs · kernel); `spatial`: (outputs · kernel's width, inputs · kernel's height).
    """
    if kind == "channel":
        return weight.flatten(1)
    return weight.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


def unmatrix(found: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
    """The inverse of `matrix`: a weight of this shape."""
    if kind == "channel":
        return found.reshape(shape)
    outputs, inputs, height, width = shape
    return found.reshape(outputs, width, inputs, height).permute(0, 2, 3, 1).contiguous()


def split(found: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of this rank as a product, (rows, rank) and (rank, columns); zeros of what is not finite."""
    if not bool(torch.isfinite(found).all()):  # weights that do not matter: others will be loaded into their place
        found = torch.zeros_like(found)
    left, values, right = torch.linalg.svd(found, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def corners(found: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The matrix's first columns and its first rows, (rows, rank) and (rank, columns): of those shapes, at once."""
    return found[:, :rank], found[:rank]


def whole_layer(module: nn.Module) -> nn.Module:
    """The module; of one in two factors, the layer that computes the same."""
    return module.whole if isinstance(module, Factorised) else module


def set_weight(module: Any, weight: Tensor) -> None:
    """Give a layer another weight; one in two factors must have it as their product."""
    if isinstance(module, Factorised):
        module.take(weight)
    else:
        module.weight.data = weight


def factorised(model: nn.Module, ranks: Mapping[str, tuple[int, Kind]], parts: Parts | None = None) -> nn.Module:
    """The network with some of its layers in two factors, in place; one in two already gets a lower rank.

    Args:
        model: changed.
        ranks: module → rank and kind.
        parts: as `Factorised.of` takes it.
    """
    for name, (rank, kind) in ranks.items():
        layer = cast(Layer, whole_layer(model.get_submodule(name)))
        model.set_submodule(name, Factorised.of(layer, rank, kind, parts))
    return model


def check_rank(model: nn.Module, name: str, rank: int, kind: Kind) -> None:
    """Whether a network has a layer that may have this rank.

    Raises:
        ValueError: it has not, or the rank is above the full one.
    """
    modules = dict(model.named_modules())
    module = whole_layer(modules.get(name, model))
    if name not in modules or not isinstance(module, Layer) or not name:
        raise ValueError(f"this network has no convolution or linear layer {shown(name)}")
    shape = tuple(module.weight.shape)
    if getattr(module, "groups", 1) > 1 or (kind == "spatial" and len(shape) != 4):
        raise ValueError(f"layer {name} cannot become two ({kind}) here")
    if rank > full_rank(shape, kind):
        raise ValueError(f"layer {name}: rank {rank} is above {full_rank(shape, kind)}, all it has")


def unfactorised(model: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy with one layer in the place of two, wherever the dense network has one; itself where that is nowhere."""
    ones = {name for name, module in dense.named_modules() if not isinstance(module, Factorised)}
    return as_ones(model, [name for name in factorised_names(model) if name in ones])


def as_ones(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy with one layer in the place of two, in these places; itself where there are none."""
    found = copied(model) if names else model
    for name in names:
        found.set_submodule(name, whole_layer(found.get_submodule(name)))
    return found


def factorised_names(model: nn.Module) -> list[str]:
    """The modules that are two layers in a row."""
    return [name for name, module in model.named_modules() if isinstance(module, Factorised)]


def input_widths(model: nn.Module, example: Inputs) -> dict[str, list[int]]:
    """Module → the width of what goes in, 1 where there is none; an entry a call."""
    found: dict[str, list[int]] = {}

    def record(name: str, taken: Any) -> None:
        found.setdefault(name, []).append(int(taken.shape[-1]) if taken.dim() == 4 else 1)

    hooks = [
        module.register_forward_pre_hook(lambda _m, given, name=name: record(name, given[0]))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def why_whole(model: nn.Module, calls: Mapping[str, Collection[int]]) -> dict[str, str]:
    """Every convolution and linear layer → why it stays whole; nothing where it need not."""
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    tensors = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}

    def reason(name: str, module: Any) -> str:
        hooked = module._forward_hooks or module._forward_pre_hooks
        known = {
            "it is the whole network": not name,
            "transposed": isinstance(module, TRANSPOSED),
            "of three dimensions": isinstance(module, nn.Conv3d),
            "its forward is its own": not is_plain(module),
            "grouped": getattr(module, "groups", 1) > 1,
            "it shares its weight": modules[id(module)] > 1 or tensors[id(module.weight)] > 1,
            "it is not called": name not in calls,
            f"it is called {len(calls.get(name, ()))} times": len(calls.get(name, ())) > 1,
            "it has hooks": bool(hooked),
        }
        return next((reason for reason, holds in known.items() if holds), "")

    return {name: reason(name, module) for name, module in layers.items()}


def sides(shape: tuple[int, ...], kind: Kind) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the rows and the columns of `matrix` count."""
    if kind == "channel":
        return shape[:1], shape[1:]
    outputs, inputs, height, width = shape
    return (outputs, width), (inputs, height)


def _builders(layer: Any, rank: int, kind: Kind) -> tuple[Any, Any]:
    """What makes the two layers, given device and type; the second one's bias is still to come."""
    if isinstance(layer, nn.Linear):
        return (
            lambda **of: nn.Linear(layer.in_features, rank, bias=False, **of),
            lambda **of: nn.Linear(rank, layer.out_features, bias=False, **of),
        )
    settings = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    down, across = {**settings, "padding_mode": layer.padding_mode}, {"kernel_size": 1}
    if kind == "spatial":
        one = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        down, across = (
            {key: value if isinstance(value, str) else _at(value, one[key], place) for key, value in settings.items()}
            | {"padding_mode": layer.padding_mode}
            for place in (0, 1)
        )
    conv: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return (
        lambda **of: conv(layer.in_channels, rank, **down, bias=False, **of),
        lambda **of: conv(rank, layer.out_channels, **across, bias=False, **of),
    )


def _at(value: tuple[int, ...], other: int, place: int) -> tuple[int, int]:
    """The value along one of two dimensions, `other` along the other."""
    return (value[0], other) if place == 0 else (other, value[1])


def _times(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(first, second, strict=True))


def _plus(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))
