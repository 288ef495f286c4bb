"""Weights rounded to a grid: symmetric, a scale an output, so that what the outputs lose is least.

A grid of b bits holds the codes −2^(b−1) … 2^(b−1) − 1, times the scale. All errors are quadratic forms in the second
moments of the inputs, H: what an output loses with weights v in place of w is (v − w) H (v − w)ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...configs.registry import Registry
from ...networks.quantise.grid import best_scale, to_codes

BLOCK = 128  # columns that are rounded before the rest of the matrix hears of it

Rounding = Callable[[Tensor, Tensor, Tensor, int], Tensor]

ROUNDINGS: Registry[Rounding] = Registry("criterion of bits", adopt=lambda _name, rounding, _known: rounding)


class Rounded(NamedTuple):
    """Weights on a grid.

    Attributes:
        codes: (groups, q, p) whole numbers, double.
        scale: (groups, q, 1) positive, double.
    """

    codes: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """(groups, q, p)."""
        return self.codes * self.scale


@ROUNDINGS.register("nearest")
def nearest(weight: Tensor, _hessian: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Each weight to the nearest value of its grid: the baseline."""
    return to_codes(weight, scale, bits)


@ROUNDINGS.register("gptq")
def gptq(weight: Tensor, hessian: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Column by column, the columns still to come taking over what one has lost.

    GPTQ: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1, of optimal brain surgery: with H⁻¹ = Uᵀ U, column j's
    error over U_jj, times row j of U, is taken from the columns behind. Those that move the outputs most come first
    (act-order). A row that nearest rounding serves better keeps that. A weight that is zero, pruned, stays zero.

    Args:
        weight: (groups, q, p), double.
        hessian: (groups, p, p) H, positive definite, double.
        scale: (groups, q, 1).
        bits: of the grid.

    Returns:
        The codes, (groups, q, p).
    """
    plain = to_codes(weight, scale, bits)
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    rows = order.unsqueeze(2).expand_as(hessian)
    ordered = hessian.gather(1, rows).gather(2, rows.transpose(1, 2))
    upper = _inverse_factor(ordered)
    if upper is None:
        return plain
    columns = order.unsqueeze(1).expand_as(weight)
    left = weight.gather(2, columns)
    kept = left != 0.0
    found = torch.empty_like(left)
    for start in range(0, left.shape[2], BLOCK):
        end = min(start + BLOCK, left.shape[2])
        block, errors = left[:, :, start:end], torch.empty_like(left[:, :, start:end])
        inner = upper[:, start:end, start:end]
        for i in range(end - start):
            column = block[:, :, i : i + 1]
            codes = to_codes(column, scale, bits) * kept[:, :, start + i : start + i + 1]
            found[:, :, start + i : start + i + 1] = codes
            errors[:, :, i : i + 1] = (column - codes * scale) / inner[:, i, i, None, None]
            block[:, :, i + 1 :] -= errors[:, :, i : i + 1] * inner[:, i, None, i + 1 :]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    found = torch.empty_like(found).scatter_(2, columns, found)
    better = lost(found * scale - weight, hessian) < lost(plain * scale - weight, hessian)
    return torch.where(better.unsqueeze(2), found, plain)


def rounded(
    weight: Tensor, gram: Tensor | None, ridge: float, bits: int, rounding: Rounding, dtype: torch.dtype
) -> Rounded:
    """Weights on the grid that serves them best.

    Args:
        weight: (groups, q, p), double.
        gram: (groups, p, p) second moments of the inputs; none, or not finite, where they are not known.
        ridge: added to them, relative to the mean squared input, as in a fit.
        bits: of the grid.
        rounding: how.
        dtype: that the weights will be stored in; the scale is a number of it.
    """
    if gram is None or not bool(torch.isfinite(gram.sum())):
        gram, rounding = torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)[None], nearest
    hessian = gram.expand(len(weight), -1, -1).clone()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal += (ridge * diagonal.mean(1, keepdim=True)).clamp_min(torch.finfo(dtype).tiny)
    scale = best_scale(weight, bits, diagonal.unsqueeze(1))
    scale = scale.to(dtype).clamp_min(torch.finfo(dtype).tiny).double()
    return Rounded(rounding(weight, hessian, scale, bits), scale)


def lost(error: Tensor, hessian: Tensor) -> Tensor:
    """(groups, q) e H eᵀ of every row: error (groups, q, p), hessian (groups, p, p)."""
    return ((error @ hessian) * error).sum(-1)


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    """U, upper triangular, with H⁻¹ = Uᵀ U; none where H is not positive definite in floating point.

    Of H read backwards, L Lᵀ, both L and the order turned round are R with H = R Rᵀ, and U is R⁻¹: no inverse of H.
    """
    factor, info = torch.linalg.cholesky_ex(hessian.flip(1, 2))
    if bool((info > 0).any()):
        return None
    upper = factor.flip(1, 2)
    eye = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(hessian), upper=True)
    return inverse
