"""A forward pass in segments, which are described, or timed while the network runs as it always does.

A segment is the call of a module without children, with whatever the network does between the call before and this one
(a sum, an activation). What comes after the last call belongs to it. So the segments' times add up to the whole pass,
the problem of memory and Python's share included, which no operation shows that is timed by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...training.inputs import Inputs, call
from .latency import Clock


@dataclass(frozen=True)
class Segment:
    """What one call does.

    Attributes:
        module: its name.
        key: its operations with the shapes of one image: what two segments share that take equally long.
        sizes: what cutting layers can change: the (outputs, inputs) of a kernel or matrix; (elements, 1) in and
            out of any other module.
        inputs: shapes of the tensors that it takes, of one image.
    """

    module: str
    key: str
    sizes: tuple[int, int]
    inputs: tuple[tuple[int, ...], ...]


def describe(model: nn.Module, image: Inputs) -> list[Segment]:
    """The segments of a pass.

    Args:
        model: in eval mode.
        image: (1, C, H, W).
    """
    between = _Between()
    segments: list[Segment] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(_module: nn.Module, _inputs: Any) -> None:
        between.inside = True

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        taken = [x for x in inputs if isinstance(x, Tensor)]
        key = f"{module!r}({', '.join(map(_shape, taken))})"
        shapes = tuple(tuple(x.shape[1:]) for x in taken)
        sizes = _sizes(module, [*taken, output])
        segments.append(Segment(names[module], " ".join([*between.calls, key]), sizes, shapes))
        between.calls.clear()
        between.inside = False

    with _hooks(model, enter, leave), between, torch.inference_mode():
        call(model, image)
    return segments


def time_segments(model: nn.Module, images: Inputs, clock: Clock) -> list[float]:
    """Seconds of every segment of one pass.

    Args:
        model: in eval mode.
        images: (N, C, H, W).
        clock: of `stopwatch`.
    """
    stamps: list[float] = []

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stamps.append(clock())

    with _hooks(model, None, leave), torch.inference_mode():
        start = clock()
        call(model, images)
        stamps[-1] = clock()
    return [after - before for before, after in zip([start, *stamps], stamps, strict=False)]


class _Between(TorchFunctionMode):
    """Writes down the functions that are called outside of modules without children."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside and isinstance(result, Tensor):
            self.calls.append(f"{getattr(func, '__name__', func)}({_shape(result)})")
        return result


@contextlib.contextmanager
def _hooks(model: nn.Module, enter: Callable[..., None] | None, leave: Callable[..., None]) -> Iterator[None]:
    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(leave) for module in leaves]
    hooks += [module.register_forward_pre_hook(enter) for module in leaves if enter is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sizes(module: nn.Module, tensors: list[Any]) -> tuple[int, int]:
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() >= 2:
        return weight.shape[0], weight.shape[1]
    return sum(x.numel() for x in tensors if isinstance(x, Tensor)), 1


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[1:]))
