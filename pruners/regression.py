"""One fit of a layer's weights: ridge regression towards the old ones, by whichever normal equations are smaller.

With n samples of p inputs, (XᵀX + λn) D = Xᵀ R takes n·p² + p³/3 operations. Where there are fewer samples than inputs
the same D is Xᵀ (XXᵀ + λn)⁻¹ R, in n²·p + n³/3: the wide layers of a VGG or a MobileNet, on small images.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .reconstruction import EPS, Moments, ridge_solve, ridge_step, self_product

Pairs = Iterable[tuple[Tensor, Tensor]]


def fit(pairs: Pairs, samples: int, weight: Tensor, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
    """Fit weights V and a constant b: min ‖T − X V − b‖² + λ‖V − W‖².

    Args:
        pairs: inputs (groups, n, p) and targets (groups, n, q), a batch each.
        samples: over all batches.
        weight: W, (groups, q, p), double.
        ridge: λ relative to the mean squared input, see `damping`.
        intercept: whether there is a place for b; else it is 0.

    Returns:
        V, (groups, q, p), and b, (groups, q), double.
    """
    if samples < weight.shape[2]:
        step, mean_x, mean_t = _from_samples(pairs, weight, ridge, intercept)
    else:
        step, mean_x, mean_t = _from_moments(pairs, weight, ridge, intercept)
    fitted = weight + step.transpose(1, 2)
    constant = mean_t - (fitted @ mean_x.unsqueeze(2)).squeeze(2)
    return fitted, constant if intercept else torch.zeros_like(constant)


def _from_moments(pairs: Pairs, weight: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
    moments = Moments()
    for x, t in pairs:
        moments.add(x, t)
    mean_x, mean_t, xx, xt = moments.centered()
    if not intercept:
        xx, xt = moments.raw()
    return ridge_step(xx, xt - xx @ weight.transpose(1, 2), ridge), mean_x, mean_t


def _from_samples(pairs: Pairs, weight: Tensor, ridge: float, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, t = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
    mean_x, mean_t = x.mean(1, keepdim=True), t.mean(1, keepdim=True)
    x, t = x - mean_x, t - mean_t
    x = x * (x.square().mean(1, keepdim=True) > (8.0 * EPS * mean_x).square())  # else a constant and rounding errors
    if not intercept:
        x, t = x + mean_x, t + mean_t
    missing = t - x @ weight.to(x.dtype).transpose(1, 2)
    kernel = self_product(x.transpose(1, 2)).double()
    inputs = x.shape[2]
    trace = kernel.diagonal(dim1=1, dim2=2).sum(-1)
    dual = ridge_solve(kernel, missing.double(), ridge * trace / inputs)
    fits = kernel @ dual  # what the step adds to the outputs
    gain = (fits * (2.0 * missing - fits)).sum((1, 2), keepdim=True)
    step = (x.transpose(1, 2) @ dual.to(x.dtype)).double()
    return torch.where(gain > 0.0, step, 0.0), mean_x.squeeze(1).double(), mean_t.squeeze(1).double()
