"""Copies of a network: all of it, or round other tensors, what does not change being shared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

_OWN = ("_parameters", "_buffers", "_modules")


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the network, however it was used before.

    A tensor that its modules computed and kept (anchors, a mask's product) is copied without the graph behind it.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    return _copy(model, {**_computed(model)})


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the modules alone, whose parameters are the network's own: to look at, not to write to.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    return rebuilt(model, lambda _, tensor: tensor)


def rebuilt(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of the modules round changed tensors; unchanged parameters are shared, buffers are copied.

    Args:
        model: not changed.
        change: a tensor's name and the tensor → what stands in its place; the tensor itself where nothing changes.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    memo: dict[int, Any] = {**_computed(model)}
    for name, parameter in model.named_parameters():
        changed = change(name, parameter.detach())
        memo[id(parameter)] = nn.Parameter(changed, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = change(name, buffer).clone()
    for module in model.modules():  # a dozen hook containers each, empty: copying those takes longer than the rest
        memo |= {id(value): type(value)() for value in vars(module).values() if isinstance(value, dict) and not value}
    return _copy(model, memo)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"the network cannot be copied ({' '.join(str(error).split())}), and is never changed itself: "
            "keep what cannot out of its modules"
        ) from error


def _computed(model: nn.Module) -> dict[int, Tensor]:
    """By id, for a deep copy: the attributes that would drag a graph along, without it."""
    kept = [value for module in model.modules() for value in vars(module).items()]
    tensors = (tensor for name, value in kept if name not in _OWN for tensor in _tensors(value))
    return {id(t): t.detach().clone() for t in tensors if t.grad_fn is not None or t.is_inference()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
