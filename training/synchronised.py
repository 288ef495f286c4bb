"""Batch norm with the statistics of a whole batch, of which every process has a part; on any device.

`torch.nn.SyncBatchNorm` computes the same, on GPUs alone, and is another module: networks would have to be rebuilt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .part import Part

_SIGNATURE = inspect.signature(F.batch_norm)


class Synchronised(TorchFunctionMode):
    """For the length of a block `F.batch_norm`, by which every batch norm is computed, takes in all processes' images.

    Running statistics become those of the whole batch everywhere. Norms in eval mode are left alone.

    Source: Ioffe & Szegedy, ICML 2015; the statistics of parts are put together as Chan, Golub & LeVeque 1979 do.
    """

    def __init__(self, part: Part):
        super().__init__()
        self._part = part

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Of any function of torch."""
        if func is F.batch_norm:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            alone = self._part.images == 1 and given.arguments["input"][0].numel() == given.arguments["input"].shape[1]
            if given.arguments["training"] and not alone:  # of one number a channel torch says that it has no variance
                return _batch_norm(self._part, *given.args)
        return func(*args, **(kwargs or {}))


def _batch_norm(
    part: Part,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    _training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    mean, variance, numbers = _moments(part, x.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (numbers / (numbers - 1).clamp_min(1))
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_(unbiased.to(running_var), momentum)
    normal: Tensor = _Normalise.apply(x, mean, (variance + eps).rsqrt(), numbers, part)
    if weight is not None:
        normal = normal * weight.view(_shape(x))
    if bias is not None:
        normal = normal + bias.view(_shape(x))
    return normal.to(x.dtype)


def _moments(part: Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) mean and variance over all processes, and how many numbers a channel they are of."""
    dims, channels = _but_channels(x), x.shape[1]
    precise = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(precise, dims, correction=0)
    count = mean.new_full((1,), (x.numel() // channels) * (part.count > 0))
    rows = part.each(torch.cat([mean, variance, count]))
    means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    numbers = counts.sum()
    mean = (counts * means).sum(0) / numbers
    return mean, (counts * (variances + (means - mean).square())).sum(0) / numbers, numbers


class _Normalise(torch.autograd.Function):
    """(x − mean) · scale, where mean and scale are of all processes' x, and their gradients reach all of them."""

    @staticmethod
    def forward(context: Any, x: Tensor, mean: Tensor, scale: Tensor, numbers: Tensor, part: Part) -> Tensor:
        context.save_for_backward(x, mean, scale, numbers)
        context.part = part
        return _normal(x, mean, scale)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        x, mean, scale, numbers = context.saved_tensors
        part, gradient, dims = context.part, gradients[0], _but_channels(x)
        normal = _normal(x, mean, scale)
        sums = part.summed(torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])) / numbers
        if part.count:  # what counts for nothing has moved no statistic
            shape = _shape(x)
            gradient = gradient - sums[0].view(shape) - normal * sums[1].view(shape)
        return (gradient * scale.view(_shape(x))).to(x.dtype), None, None, None, None


def _normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x.to(mean.dtype) - mean.view(_shape(x))) * scale.view(_shape(x))


def _shape(x: Tensor) -> tuple[int, ...]:
    return (1, -1) + (1,) * (x.dim() - 2)


def _but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]
