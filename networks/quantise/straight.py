"""Functions whose gradient is not their own: what is rounded has none, and is trained as if it were not rounded.

The straight-through estimator: Bengio, Léonard, Courville 2013 (arXiv 1308.3432). The values are exact, which
`x + (round(x) − x).detach()` is not in floating point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> Any:
        return gradients[0]


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (x,) = context.saved_tensors
        return gradients[0] * (x.abs() <= 1.0)


class _Instead(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(x)

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0] * context.factor, None


class _FewBitGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, bits: int) -> Tensor:
        context.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return few_bit_gradient(gradients[0], context.bits), None


def straight_round(x: Tensor) -> Tensor:
    """To the nearest whole number; the gradient passes."""
    rounded: Tensor = _Round.apply(x)
    return rounded


def straight_sign(x: Tensor) -> Tensor:
    """1 where x ≥ 0, else −1; the gradient passes where |x| ≤ 1 (Hubara et al., NeurIPS 2016, eq. 4)."""
    sign: Tensor = _Sign.apply(x)
    return sign


def straight(x: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of x."""
    instead: Tensor = _Instead.apply(x, value)
    return instead


def scaled_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """The same, with a gradient that is so many times as large; the factor may be one of every number."""
    same: Tensor = _ScaledGradient.apply(x, factor)
    return same


def with_few_bit_gradient(x: Tensor, bits: int) -> Tensor:
    """The same, with a gradient of so many bits; see `few_bit_gradient`."""
    same: Tensor = _FewBitGradient.apply(x, bits)
    return same


def in_steps(x: Tensor, bits: int) -> Tensor:
    """round((2^k − 1) x) / (2^k − 1), x in [0, 1]; the gradient passes (DoReFa-Net: Zhou et al. 2016, eq. 5)."""
    steps = 2**bits - 1
    found: Tensor = straight_round(x * steps) / steps
    return found


def few_bit_gradient(gradient: Tensor, bits: int) -> Tensor:
    """2 max|g| (quantise_k(g / (2 max|g|) + ½ + N) − ½), max over each image, N uniform within half a step (eq. 12).

    The noise is drawn from torch's own random state.
    """
    most = gradient.abs().flatten(1).amax(1).reshape(-1, *[1] * (gradient.dim() - 1))
    most = 2.0 * most.clamp_min(torch.finfo(gradient.dtype).tiny)
    noise = (torch.rand_like(gradient) - 0.5) / (2**bits - 1)
    found: Tensor = most * (in_steps((gradient / most + 0.5 + noise).clamp(0.0, 1.0), bits) - 0.5)
    return found
