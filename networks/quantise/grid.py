"""A weight tensor on a grid while it is trained: trained are a weight of full precision, and the grid's scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .straight import scaled_gradient, straight_round

FULL = 32  # bits of a weight as it is
FINEST = 16  # what a plan by hand may ask for; a grid of more is no coarser than single precision, and none is laid
RATIOS = torch.linspace(1.0, 0.1, 31, dtype=torch.float64)  # of the scale at which nothing is clipped
REFINED = 3  # rounds of: the best scale for these codes, the best codes for this scale


def code_range(bits: int) -> tuple[int, int]:
    """The least and the greatest code of so many bits, as two's complement has them."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def to_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest codes; weight (…), scale broadcast to it."""
    return (weight / scale).round().clamp(*code_range(bits))


def by_row(scale: Tensor, weight: Tensor) -> Tensor:
    """(q, 1, …) of a scale (q,), to go with a weight (q, …)."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def best_scale(weight: Tensor, bits: int, importance: Tensor) -> Tensor:
    """(…, 1) the scale of every row whose nearest grid loses least, Σ importance · (v − w)²; 1 for a row of zeros.

    Searched among scales that clip more and more of the row, and then improved, codes and scale in turn.

    Args:
        weight: (…, p).
        bits: of the grid.
        importance: of every weight, broadcast to them; positive.
    """
    least, greatest = code_range(bits)
    span = torch.maximum(weight / greatest, weight / least).amax(-1, keepdim=True)
    span = torch.where(span > 0.0, span, 1.0)

    def error(scale: Tensor) -> Tensor:
        return ((to_codes(weight, scale, bits) * scale - weight).square() * importance).sum(-1, keepdim=True)

    best, loss = span, error(span)
    for ratio in RATIOS[1:].tolist():
        best, loss = _better(best, loss, span * ratio, error)
    for _ in range(REFINED):
        codes = to_codes(weight, best, bits) * importance
        fitted = (codes * weight).sum(-1, keepdim=True) / (codes * to_codes(weight, best, bits)).sum(-1, keepdim=True)
        best, loss = _better(best, loss, torch.where(fitted > 0.0, fitted, best), error)
    return best


def _better(best: Tensor, loss: Tensor, tried: Tensor, error: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    found = error(tried)
    return torch.where(found < loss, tried, best), torch.minimum(found, loss)


@dataclass(frozen=True)
class Scales:
    """Codes of so many bits times a scale a row; see `on_grid.Levels`.

    Attributes:
        scale: broadcast to the weights.
        bits: of a code.
    """

    scale: Tensor
    bits: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest."""
        return to_codes(weight, self.scale, self.bits)

    def values(self, codes: Tensor) -> Tensor:
        """Of these codes."""
        return codes * self.scale

    def of(self, weight: Tensor) -> Scales:
        """As a tensor (q, …) has them, in its type."""
        return Scales(by_row(self.scale.flatten(), weight).to(weight.dtype), self.bits)


class Grid(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`) of a weight: codes times a scale an output, which is trained.

    LSQ: Esser et al., ICLR 2020, eqs. 1–3, and its gradient scale 1/√(weights · greatest code). In between the codes
    at the ends the gradient of the rounding is 1, beyond them 0.

    Attributes:
        scale: (q,) trained; its size counts.
        bits: of the grid.
        pruned: which weights are zero whatever is trained; none where all are free.
    """

    def __init__(self, scale: Tensor, bits: int, pruned: Tensor | None = None, *, trained: bool = True):
        super().__init__()
        self.pruned = pruned
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
        laid: Tensor = straight_round((weight / scale).clamp(least, greatest)) * scale
        return laid if self.pruned is None else laid.masked_fill(self.pruned, 0.0)
