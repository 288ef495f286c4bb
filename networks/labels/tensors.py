"""Tensors of labels: what differs in them, and along what."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def thinned(*labels: Tensor) -> Iterator[Tensor]:
    """Tensors of one shape, with a size of 1 where all only repeat themselves."""
    found = list(labels)
    for dim, size in enumerate(found[0].shape):
        if size > 1 and all(tensor.stride(dim) == 0 or _repeats(tensor, dim) for tensor in found):
            found = [tensor.narrow(dim, 0, 1) for tensor in found]
    return iter(found)


def distinct(labels: Tensor) -> Tensor:
    """(n,) the different ones, without 0."""
    (thin,) = thinned(labels)
    found: Tensor = torch.unique(thin[thin > 0])
    return found


def varies(labels: Tensor, shape: torch.Size) -> bool:
    """Whether they differ along a dimension that a tensor of this shape is broadcast along."""
    (thin,) = thinned(labels)
    lacking = thin.dim() - len(shape)
    return any(size > 1 and (dim < lacking or shape[dim - lacking] == 1) for dim, size in enumerate(thin.shape))


def _repeats(labels: Tensor, dim: int) -> bool:
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def at_first(labels: Tensor, *dims: int) -> Tensor:
    """Labels along some dimensions, at the first place of all others that has all: a constant may be round it."""
    others = [dim for dim in range(labels.dim()) if dim not in dims]
    if not others:
        return labels
    (table,) = thinned(labels.permute(*others, *dims))
    sizes = [labels.shape[dim] for dim in dims]
    table = table.expand(*table.shape[: len(others)], *sizes).flatten(0, len(others) - 1)
    return table[int((table > 0).flatten(1).all(1).int().argmax())]


def laid_along(labels: Tensor, dim: int, dims: int) -> Tensor:
    """(n,) as a tensor of so many dimensions that broadcasts along all but one."""
    return labels.reshape([-1 if d == dim else 1 for d in range(dims)])
