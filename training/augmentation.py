"""Images moved and mirrored at random, whole batches at a time."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 16
"""Images below this many pixels are moved by 1, not 4."""


def random_crop(
    pixels: Tensor, generator: torch.Generator, *, outside: Literal["constant", "reflect"] = "constant"
) -> Tensor:
    """Each image of (N, C, H, W) moved by up to 4 pixels either way (1 for small ones).

    Args:
        pixels: of integers, or of floats.
        generator: draws by how much; the same on every device.
        outside: what comes in from the border: constant: 0, which is black before images are normalised; reflect: the
            image mirrored there.
    """
    count, channels, height, width = pixels.shape
    padding = 1 if min(height, width) < SMALL else 4
    padded = F.pad(pixels, (padding, padding, padding, padding), mode=outside)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, H, W) mirrored left to right, or not, with even odds."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(pixels.device), pixels.flip(-1), pixels)
