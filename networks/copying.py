"""Copies of a network round other tensors: what does not change is shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def rebuilt(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of the modules round changed tensors; unchanged parameters are shared, buffers are copied.

    Args:
        model: not changed.
        change: a tensor's name and the tensor → what stands in its place; the tensor itself where nothing changes.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        changed = change(name, parameter.detach())
        memo[id(parameter)] = nn.Parameter(changed, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        memo[id(buffer)] = change(name, buffer).clone()
    for module in model.modules():  # a dozen hook containers each, empty: copying those takes longer than the rest
        memo |= {id(value): type(value)() for value in vars(module).values() if isinstance(value, dict) and not value}
    return copy.deepcopy(model, memo)
