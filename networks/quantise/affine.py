"""Integers of 8 bits in place of floats, r = S (q − Z), and the arithmetic of networks that hold nothing else.

Jacob et al., CVPR 2018 (arXiv 1712.05877).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .straight import straight_round

FIXED = 31  # bits of the fixed-point multiplier M₀


class Affine(NamedTuple):
    """A grid r = S (q − Z) (eq. 1).

    Attributes:
        scale: S, positive.
        zero: Z, the code of 0.
        bits: q lies in 0 … 2^bits − 1.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def of(cls, low: Tensor, high: Tensor, bits: int = 8) -> Affine:
        """Of a range; it is widened to hold 0, which is one of the codes (eqs. 12, 13 and sec. 3)."""
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(low.dtype).tiny)
        return cls(scale, (-low / scale).round().clamp(0, 2**bits - 1), bits)

    def codes(self, real: Tensor) -> Tensor:
        """q, as floats; the gradient passes where nothing is clipped."""
        return (straight_round(real / self.scale) + self.zero).clamp(0, 2**self.bits - 1)

    def real(self, codes: Tensor) -> Tensor:
        """r."""
        return (codes - self.zero) * self.scale


def fixed_point(multiplier: float) -> tuple[int, int]:
    """M₀ and n of M = 2⁻ⁿ M₀ / 2³¹, M₀ in [2³⁰, 2³¹) (eq. 6).

    Raises:
        ValueError: M is not positive and finite.
    """
    if not 0.0 < multiplier < math.inf:
        raise ValueError(f"M = {multiplier}: S₁ S₂ / S₃ is positive")
    mantissa, exponent = math.frexp(multiplier)
    fixed = round(mantissa * 2**FIXED)
    return (fixed // 2, -(exponent + 1)) if fixed == 2**FIXED else (fixed, -exponent)


def scaled(accumulator: Tensor, fixed: int, shift: int) -> Tensor:
    """round(M · accumulator), half upwards, in integers alone: a product of 64 bits, and a shift.

    Args:
        accumulator: of 32 bits (int64 tensor).
        fixed: M₀.
        shift: n, more than −31.
    """
    total = FIXED + shift
    if total <= 0:
        raise ValueError(f"n = {shift}: the output's grid is finer than products of inputs and weights can fill")
    if total > 62:
        return torch.zeros_like(accumulator)
    return (accumulator * fixed + (1 << (total - 1))) >> total


def integer_product(
    x: Tensor, x_grid: Affine, weight: Tensor, w_grid: Affine, bias: Tensor | None, out: Affine
) -> Tensor:
    """The codes of x wᵀ + b, from codes alone (eqs. 4, 5, 7 and sec. 2.4): int32 sums, one multiplier.

    Args:
        x: (n, p) int64 codes.
        x_grid: S₁, Z₁.
        weight: (q, p) int64 codes.
        w_grid: S₂, Z₂.
        bias: (q,) real; becomes an integer of S₁ S₂.
        out: S₃, Z₃.

    Returns:
        (n, q) int64 codes.

    Raises:
        ValueError: a sum does not fit 32 bits.
    """
    step = x_grid.scale.double() * w_grid.scale.double()
    zero = int(x_grid.zero), int(w_grid.zero)
    total = (x - zero[0]) @ (weight - zero[1]).T
    if bias is not None:
        total = total + (bias.double() / step).round().to(torch.int64)
    if total.numel() and int(total.abs().max()) >= 2**31:
        raise ValueError("a sum of products does not fit 32 bits: fewer inputs, or a larger grid")
    fixed, shift = fixed_point(float(step / out.scale.double()))
    return (scaled(total, fixed, shift) + int(out.zero)).clamp(0, 2**out.bits - 1)
