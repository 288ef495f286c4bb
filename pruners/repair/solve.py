"""One fit of a layer's weights: ridge regression towards the old ones, by whichever normal equations are smaller.

With n samples of p inputs, (XᵀX + λn) D = Xᵀ R takes n·p² + p³/3 operations. Where there are fewer samples than inputs
the same D is Xᵀ (XXᵀ + λn)⁻¹ R, in n²·p + n³/3: the wide layers of a VGG or a MobileNet, on small images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .statistics import EPS, Moments, self_product

Pairs = Iterable[tuple[Tensor, Tensor]]
Step = Callable[[Tensor, Tensor, float], Tensor]

RIDGE = 1e-4  # the least there is, of the mean squared input; towards the old weights, so it bounds a fit's step

MOST_BYTES = 2**28  # that the systems of a batch of rows may take


def fit(
    pairs: Pairs, samples: int, weight: Tensor, ridge: float, *, intercept: bool, solve: Step | None = None
) -> tuple[Tensor, Tensor]:
    """Fit weights V and a constant b: min ‖T − X V − b‖² + λ‖V − W‖².

    Args:
        pairs: inputs (groups, n, p) and targets (groups, n, q), a batch each.
        samples: over all batches.
        weight: W, (groups, q, p), double.
        ridge: λ relative to the mean squared input, see `damping`.
        intercept: whether there is a place for b; else it is 0.
        solve: takes Gram matrix, cross moments and ridge to a step of a form of its own; none is `ridge_step`.

    Returns:
        V, (groups, q, p), and b, (groups, q), double.
    """
    if samples < weight.shape[2] and solve is None:
        step, mean_x, mean_t = _from_samples(pairs, weight, ridge, intercept)
    else:
        step, mean_x, mean_t = _from_moments(pairs, weight, ridge, intercept, solve or ridge_step)
    fitted = weight + step.transpose(1, 2)
    constant = mean_t - (fitted @ mean_x.unsqueeze(2)).squeeze(2)
    return fitted, constant if intercept else torch.zeros_like(constant)


def _from_moments(
    pairs: Pairs, weight: Tensor, ridge: float, intercept: bool, solve: Step
) -> tuple[Tensor, Tensor, Tensor]:
    moments = Moments()
    for x, t in pairs:
        moments.add(x, t)
    mean_x, mean_t, xx, xt = moments.centered()
    if not intercept:
        xx, xt = moments.raw()
    return solve(xx, xt - xx @ weight.transpose(1, 2), ridge), mean_x, mean_t


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


def damping(samples: float, inputs: int, ridge: float = RIDGE) -> float:
    """The relative ridge of a fit: the fewer samples an input, the less they are believed.

    The best ridge is p/n · (1 − R²)/R² of the mean squared input, for p inputs of equal variance, n samples and steps
    of any direction (Hoerl, Kennard, Baldwin 1975: p·σ²/‖β‖²); half of what was lost can be made good, so (1 − R²)/R²
    is 1. With too little of it a fit to fewer images than inputs passes through all of them, is far off on any other,
    and the next layer's fit is far off on top: logits 10⁵ times their spread away.

    Args:
        samples: n that the moments were summed over, or as many of them as count as independent.
        inputs: p.
        ridge: the least.
    """
    return max(ridge, inputs / samples)


def ridge_step(gram: Tensor, cross: Tensor, ridge: float = RIDGE) -> Tensor:
    """argmin over D of ‖R − X D‖² + λ‖D‖², λ = ridge · mean diagonal of the Gram matrix.

    Args:
        gram: (…, p, p) XᵀX, double.
        cross: (…, p, q) XᵀR of what is still missing.
        ridge: relative to the mean squared input.

    Returns:
        (…, p, q) the step; 0 where the inputs are all zero, and where what it would take from ‖R − X D‖² is not
        positive or not finite. It always is in exact arithmetic, but not with moments that overflowed or whose
        rounding errors are larger than the ridge.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    step = ridge_solve(gram, cross, ridge * scale)
    gain = (step * (2.0 * cross - gram @ step)).sum((-2, -1), keepdim=True)
    return torch.where(gain >= 0.0, step, 0.0)


def ridge_solve(matrix: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """(matrix + added · I)⁻¹ right, of positive semi-definite matrices (…, n, n); 0 where one is not finite."""
    if not bool(torch.isfinite(matrix.sum())):
        return torch.zeros_like(right)
    damped = matrix.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(added.clamp_min(torch.finfo(matrix.dtype).tiny).unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool((info > 0).any()):  # not positive definite in floating point: as good as singular
        solved: Tensor = torch.linalg.pinv(damped, hermitian=True) @ right
        return solved
    return torch.cholesky_solve(right, factor)


def masked_ridge_step(gram: Tensor, cross: Tensor, ridge: float, keep: Tensor) -> Tensor:
    """`ridge_step` where every output may use inputs of its own: one small system a row, solved in batches.

    What AdaPrune (Hubara et al., NeurIPS 2021) and SparseGPT (Frantar & Alistarh, ICML 2023) approximate row by row;
    with the Gram matrix at hand the exact solution is a gathered Cholesky factorisation.

    Args:
        gram: (groups, p, p) XᵀX, double.
        cross: (groups, p, q) XᵀR of what is still missing.
        ridge: relative to the mean squared input.
        keep: (groups, q, p) bool, which inputs an output has.

    Returns:
        (groups, p, q) the step, 0 where an input is not kept; 0 for an output for which it would not lower the error.
    """
    outputs = cross.shape[2]
    step = torch.zeros_like(cross)
    added = (ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(torch.finfo(gram.dtype).tiny)
    counts = keep.sum(-1).flatten()
    order = counts.argsort(descending=True)
    order = order[counts[order] > 0]
    start = 0
    while start < len(order):
        size = int(counts[order[start]])
        rows = order[start : start + max(1, MOST_BYTES // (8 * size * size))]
        start += len(rows)
        group, output = rows // outputs, rows % outputs
        mask = keep[group, output]
        index = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        there = mask.gather(1, index)
        system = gram[group[:, None, None], index[:, :, None], index[:, None, :]]
        system = system * (there[:, :, None] & there[:, None, :])
        diagonal = system.diagonal(dim1=1, dim2=2)
        diagonal += torch.where(there, added[group, None], 1.0)
        right = cross[group[:, None], index, output[:, None]] * there
        factor, info = torch.linalg.cholesky_ex(system)
        found = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
        gain = (found * right).sum(1, keepdim=True)
        good = (info == 0)[:, None] & torch.isfinite(found).all(1, keepdim=True) & (gain >= 0.0)
        found = torch.where(good & there, found, 0.0)
        step[group[:, None], index, output[:, None]] = found
    return step


def damped_inverse(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(G + λI)⁻¹, λ the least ridge of a repair, raised tenfold where rounding errors ask for it.

    Args:
        gram: (groups, p, p) positive semi-definite, double.

    Returns:
        The inverse (groups, p, p), and λ (groups,).
    """
    damped = gram.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1)
    ridge = RIDGE * torch.maximum(scale, 1e-9 * scale.max())  # a group may be all zero
    ridge = ridge.clamp_min(torch.finfo(gram.dtype).tiny)
    diagonal += ridge[:, None]
    factor, info = torch.linalg.cholesky_ex(damped)
    while bool((info > 0).any()):  # moments are summed in single precision: a wide Gram matrix may need more
        diagonal += 9.0 * ridge[:, None]
        ridge = 10.0 * ridge
        factor, info = torch.linalg.cholesky_ex(damped)
    del damped, diagonal  # as large as the result, and no longer looked at
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(eye, factor), ridge  # `cholesky_inverse` takes six times as long
