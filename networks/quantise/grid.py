"""A weight tensor on a grid while it is trained: trained are a weight of full precision, and the grid's scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .straight import scaled_gradient, straight_round


def code_range(bits: int) -> tuple[int, int]:
    """The least and the greatest code of so many bits, as two's complement has them."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def to_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest codes; weight (…), scale broadcast to it."""
    return (weight / scale).round().clamp(*code_range(bits))


def by_row(scale: Tensor, weight: Tensor) -> Tensor:
    """(q, 1, …) of a scale (q,), to go with a weight (q, …)."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


class Grid(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`) of a weight: codes times a scale an output, which is trained.

    LSQ: Esser et al., ICLR 2020, eqs. 1–3, and its gradient scale 1/√(weights · greatest code). In between the codes
    at the ends the gradient of the rounding is 1, beyond them 0.

    Attributes:
        scale: (q,) trained; its size counts.
        bits: of the grid.
    """

    def __init__(self, scale: Tensor, bits: int, *, trained: bool = True):
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone(), requires_grad=trained)
        self.bits = bits

    @property
    def positive(self) -> Tensor:
        """(q,) the scale as it is used."""
        return self.scale.abs().clamp_min(torch.finfo(self.scale.dtype).tiny)

    def forward(self, weight: Tensor) -> Tensor:
        """(q, …) → the same on the grid."""
        least, greatest = code_range(self.bits)
        factor = (weight[0].numel() * max(1, greatest)) ** -0.5
        scale = by_row(scaled_gradient(self.positive, factor), weight)
        return straight_round((weight / scale).clamp(least, greatest)) * scale
