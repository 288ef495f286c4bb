"""Follows channels through a forward pass: every element of every tensor is labelled with the channel it belongs to.

The forward runs as it is, whatever Python it is made of. What moves elements (a reshape, a chunk, a concatenation, a
roll) moves their labels by the very same call; what works element by element unites the labels of its operands; a
convolution or linear layer ends its input's channels and begins its own. Nothing is known of any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..attention import IN_PROJECTION, HeadAttention
from ..channel_norms import normalised_dim
from ..channel_pad import ChannelPad
from ..inference import FAILURES
from ..norms import LAYERS
from .grouped import Grouped
from .tensors import distinct, laid_along, thinned, varies

Pairs = list[tuple[Tensor, Tensor]]
MOST = 2**22  # elements of a parameter that is not a layer's weight and is labelled one by one


@dataclass(frozen=True)
class Fold:
    """Channels that a reshape lays out as rows and columns, or that are split into equal parts.

    Attributes:
        labels: (rows, columns).
        module: where it was done.
        apart: rows are parts of the forward's own (a chunk, a split): columns go together in any case.
    """

    labels: Tensor
    module: str
    apart: bool = False


@dataclass
class Trace:
    """What was seen of a forward pass; labels are float64, from 1, and 0 is no channel.

    Attributes:
        dims: (parameter, dimension) of a layer's weight or bias → (size,) labels.
        roles: what that dimension is: `out`, `in` or `through`.
        elements: any other parameter or buffer → labels in its own shape.
        pairs: labels that are of one channel.
        mixtures: pairs of a label that stands for many, and one of these; they count where the former is used.
        used: labels that a layer or the output takes.
        sums: labels of what is added to another activation.
        blocked: labels of channels that cannot go, and why.
        folds: see `Fold`.
        grouped: see `Grouped`.
        pads: `ChannelPad` → labels of its outputs and of its inputs.
        count: how many labels there are.
        products: labels of what a matrix product is made of, and its multiply-accumulates.
    """

    dims: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    pairs: Pairs = field(default_factory=list)
    mixtures: Pairs = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    blocked: list[tuple[Tensor, str]] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    grouped: list[Grouped] = field(default_factory=list)
    products: list[tuple[Tensor, int]] = field(default_factory=list)
    pads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    count: int = 0


Rule = Callable[["Follower", "Call"], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what functions of these names do to labels."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Call:
    """One call of a function of torch, and what it returned."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """By position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor it was given."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """Every tensor of floats or truth values that it returned."""
        return [value for value in tree_leaves(self.out) if isinstance(value, Tensor) and value.dtype != torch.int64]


class Follower(TorchFunctionMode):
    """Runs beside a forward pass and labels what it computes.

    Attributes:
        trace: what was seen.
        called: names of the modules that ran.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.trace = Trace()
        self.called: set[str] = set()
        self._owner = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self._weights = {
            f"{name}.{tensor}".strip(".")
            for name, module in model.named_modules()
            for tensor in (("weight", "bias") if isinstance(module, LAYERS) else IN_PROJECTION)
            if isinstance(module, (*LAYERS, HeadAttention))
        }
        self._labels = WeakTensorKeyDictionary()
        self._closed = 0  # how many modules are running that are followed from outside
        self._elements: list[tuple[int, int]] = []  # from and up to which labels are parameters' elements
        self._stack: list[tuple[str, nn.Module]] = [("", model)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call: done as it is, then followed."""
        given = dict(kwargs or {})
        out = func(*args, **given)
        if self._closed:
            return out
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            name = func.__self__.__name__
        self.follow(Call(name.strip("_"), func, args, given, out))
        return out

    def follow(self, called: Call) -> None:
        """Label what a call returned."""
        try:
            RULES.get(called.name, Follower.lose)(self, called)
        except FAILURES:  # given in a way that the rule does not know
            self.lose(called)

    def lose(self, called: Call) -> None:
        """What nobody knows how to follow: its channels stay."""
        found = [label for label in map(self.of, called.tensors) if label is not None]
        for label in found if called.outputs else ():
            self.block(label, f"it runs through {called.name}{self.place}, which cannot be followed")
        for out in called.outputs:
            self.put(out, next((label for label in found if label.shape == out.shape), None))

    # -- where the forward is

    @property
    def module(self) -> tuple[str, nn.Module]:
        """The module whose forward is running."""
        return self._stack[-1]

    @property
    def place(self) -> str:
        """For a message."""
        name, module = self.module
        return f" of {name}, a {type(module).__name__}" if name else ""

    def entering(self, name: str) -> Callable[..., None]:
        """A hook for before a module's forward."""

        def enter(module: nn.Module, _inputs: Any) -> None:
            self._stack.append((name, module))
            self.called.add(name)
            self._closed += _followed_from_outside(module)

        return enter

    def leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A hook for after it."""
        name, _ = self._stack.pop()
        self._closed -= _followed_from_outside(module)
        if isinstance(module, ChannelPad):
            self.padded(name, module, inputs[0], output)
        dim = normalised_dim(module)
        if dim is not None and not self._closed:
            self.normalised(module, dim, inputs[0], output)

    # -- labels of tensors

    def of(self, tensor: Any) -> Tensor | None:
        """A tensor's labels, if it has any; a parameter that is no layer's weight has one an element."""
        if not isinstance(tensor, Tensor):
            return None
        labels: Tensor | None = self._labels.get(tensor)  # type: ignore[no-untyped-call]
        if labels is not None:
            return labels if labels.shape == tensor.shape else None
        name = self._owner.get(id(tensor))
        if name is None or name in self._weights or not tensor.dim() or not 1 < tensor.numel() <= MOST:
            return None
        if not tensor.is_floating_point():
            return None
        self._elements.append((self.trace.count + 1, self.trace.count + 1 + tensor.numel()))
        self.trace.elements[name] = labels = self.fresh(tensor.numel()).reshape(tensor.shape)
        self._labels[tensor] = labels
        return labels

    def put(self, tensor: Any, labels: Tensor | None) -> None:
        """Label a tensor."""
        if not isinstance(tensor, Tensor):
            return
        if labels is not None and labels.shape == tensor.shape and tensor.dim():
            self._labels[tensor] = labels
        elif tensor in self._labels:
            del self._labels[tensor]

    def fresh(self, count: int) -> Tensor:
        """(count,) labels that nothing has."""
        start = self.trace.count + 1
        self.trace.count += count
        return torch.arange(start, start + count, dtype=torch.float64)

    def weight(self, tensor: Tensor | None) -> str | None:
        """The name of a layer's weight: the tensor's, or, where it is computed, that of the layer that runs."""
        if tensor is None:
            return None
        _, module = self.module
        own = getattr(module, "weight", None)
        if id(tensor) not in self._owner and isinstance(module, LAYERS) and isinstance(own, Tensor):
            tensor = own if own.shape == tensor.shape else tensor
        found = self._owner.get(id(tensor))
        return found if found in self._weights else None

    def name(self, tensor: Tensor) -> str | None:
        """A parameter's or buffer's."""
        return self._owner.get(id(tensor))

    def constant(self, labels: Tensor) -> bool:
        """Whether they are all of parameters' and buffers' elements, or made of these alone: none of an activation."""
        if not self._elements:
            return False
        found = distinct(labels)
        starts, stops = torch.tensor(self._elements, dtype=torch.float64).T.contiguous()
        place = torch.searchsorted(starts, found, right=True) - 1
        return bool(((place >= 0) & (found < stops[place])).all())

    def dim(self, parameter: str, dim: int, size: int, role: str, constant: bool = False) -> Tensor:
        """(size,) labels of a dimension of a layer's weight or bias; `constant` if it is laid on no activation."""
        key = (parameter, dim)
        if key not in self.trace.dims:
            if constant:
                self._elements.append((self.trace.count + 1, self.trace.count + 1 + size))
            self.trace.dims[key] = self.fresh(size)
        self.trace.roles[key] = role
        return self.trace.dims[key]

    def padded(self, name: str, pad: ChannelPad, x: Tensor, out: Tensor) -> None:
        """A shortcut that keeps account of both its sides: a channel goes on one and not on the other."""
        labels = self.of(x)
        if labels is None:
            return
        begins = self.fresh(pad.out_channels)
        self.trace.pads[name] = (begins, self.ends(labels, 1))
        self.put(out, begins[:, None, None].expand(out.shape))

    def normalised(self, norm: nn.Module, dim: int, x: Tensor, out: Tensor) -> None:
        """A norm over channels: of those that are left, with parameters of each."""
        labels = self.of(x)
        if labels is None:
            return
        channels = self.ends(labels, dim)
        for own in map(self.of, norm.parameters(recurse=False)):
            if own is not None:
                channels = self.unite(channels, own)
        self.put(out, laid_along(channels, dim % x.dim(), x.dim()).expand(out.shape))

    # -- what is found out about them

    def unite(self, some: Tensor, others: Tensor) -> Tensor:
        """Labels that meet element by element are of one channel; returns those of the result, broadcast.

        But for a parameter that meets several channels with one element, and so is of none of them.
        """
        shape = (some + others).shape
        for one, other in ((some, others), (others, some)):
            if self.constant(one) and not self.constant(other) and varies(other, one.shape):
                return other.expand(shape)
        if self.constant(some):  # what comes of it is of the other's making
            some, others = others, some
        left, right = thinned(some.expand(shape), others.expand(shape))
        both = (left > 0) & (right > 0) & (left != right)
        if bool(both.any()):
            self.trace.pairs.append((left[both], right[both]))
        return torch.where(left > 0, left, right).expand(shape)

    def use(self, labels: Tensor) -> None:
        """A layer takes these: what is mixed in them counts."""
        self.trace.used.append(distinct(labels))

    def ends(self, labels: Tensor, channel: int) -> Tensor:
        """(channels,) of what is taken channel by channel: one label each, 0 where there is none."""
        kept = self.mixed(labels, [dim for dim in range(labels.dim()) if dim != channel % labels.dim()]).flatten()
        self.use(kept)
        return kept

    def block(self, labels: Tensor, reason: str) -> None:
        """These channels cannot go."""
        self.use(labels)
        self.trace.blocked.append((distinct(labels), reason))

    def mixed(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """Labels with these dimensions reduced to 1: where they differ along them, one that stands for all."""
        (thin,) = thinned(labels)
        highest = thin.amax(tuple(dims), keepdim=True) if dims else thin
        differ = ((thin > 0) & (thin != highest)).expand(thin.shape)
        if bool(differ.any()):
            several = differ.sum(tuple(dims), keepdim=True) > 0
            highest = highest.contiguous().clone()
            highest[several] = self.fresh(int(several.sum()))
            mixed, single = highest.expand(thin.shape), several.expand(thin.shape) & (thin > 0)
            self.trace.mixtures.append((mixed[single], thin[single]))
        shape = [1 if dim in dims else size for dim, size in enumerate(labels.shape)]
        return highest.expand(shape)


def _followed_from_outside(module: nn.Module) -> bool:
    return isinstance(module, ChannelPad) or normalised_dim(module) is not None
