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


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0] * context.factor, None


def straight_round(x: Tensor) -> Tensor:
    """To the nearest whole number; the gradient passes."""
    rounded: Tensor = _Round.apply(x)
    return rounded


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """The same, with a gradient that is so many times as large."""
    same: Tensor = _ScaledGradient.apply(x, factor)
    return same
