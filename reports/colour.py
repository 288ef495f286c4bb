"""How much of a filter of the image is colour, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def colour_selectivity(filters: NDArray[np.float64], std: Sequence[float] = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """The fraction of a filter's energy that no grey image can reach, in [0, 1].

    With w = filter / std, which is what works on the pixels themselves, and w̄ = (w_r + w_g + w_b) / 3 at every place,

        1 − 3 Σ w̄² / Σ w²

    that is one less the energy of the projection on the achromatic axis r = g = b. It is 0 for a filter that is alike
    in all three colours, 1 for an opponent one (w_r + w_g + w_b = 0 everywhere), 2/3 on average for one whose weights
    are drawn at random; scale and sign do not matter, nor does the order of colours or places. A filter of nothing but
    zeros has 0.

    The same question as in the colour selectivity index of Rafegas & Vanrell (Vision Research, 2018), which compares a
    neuron's responses to images in colour and in grey; asked here of the weights, so that no images are needed.

    Args:
        filters: (n, 3, height, width) of a convolution whose input is (image − mean) / std.
        std: of each colour.
    """
    pixels = _on_pixels(filters, std)
    energy = np.square(pixels).sum((1, 2, 3))
    grey = 3.0 * np.square(pixels.mean(1)).sum((1, 2))
    return np.where(energy > 0.0, 1.0 - grey / np.where(energy > 0.0, energy, 1.0), 0.0).clip(0.0, 1.0)


def filter_tiles(filters: NDArray[np.float64], std: Sequence[float] = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """(n, height, width, 3) in [0, 1]: every filter as an RGB image, its largest |weight| at 0 or 1, zero mid-grey."""
    pixels = _on_pixels(filters, std)
    most = np.abs(pixels).max((1, 2, 3), keepdims=True)
    return np.moveaxis(0.5 + 0.5 * pixels / np.where(most > 0.0, most, 1.0), 1, -1)


def _on_pixels(filters: NDArray[np.float64], std: Sequence[float]) -> NDArray[np.float64]:
    if filters.ndim != 4 or filters.shape[1] != 3 or len(std) != 3:
        raise ValueError(f"filters {filters.shape} and std {tuple(std)}: expected (n, 3, height, width) and 3 numbers")
    return filters.astype(np.float64) / np.asarray(std, dtype=np.float64)[:, None, None]
