"""Norms over all channels: what they compute of those that are left, in a network of the dense shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_KINDS = ("layernorm", "rmsnorm", "globalresponsenorm", "grn")


def normalised_dim(module: nn.Module) -> int | None:
    """The dimension that a norm over channels works along; none for any other module.

    Layer norm, RMS norm and global response norm, torch's, torchvision's, timm's or of one's own, by the name of their
    class: with a weight for each channel, which says how many there are.
    """
    name, weight = type(module).__name__.lower(), getattr(module, "weight", None)
    if not any(kind in name for kind in _KINDS) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    return int(getattr(module, "channel_dim", 1 if "2d" in name else -1))


class NormOfKept(nn.Module):
    """A norm over the channels that are left, the others being zeros before and after it.

    Attributes:
        norm: over those alone.
        kept: (channels left,) int64, ascending.
        dim: of the channels.
    """

    kept: Tensor

    def __init__(self, norm: nn.Module, kept: Tensor, dim: int):
        super().__init__()
        self.norm = norm
        self.dim = dim
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the dense shape."""
        normalised = self.norm(x.index_select(self.dim, self.kept))
        return torch.zeros_like(x).index_copy(self.dim, self.kept, normalised)
