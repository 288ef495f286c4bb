"""One split's images: decoded once, kept as bytes, given out as normalised batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .loaders import TrainLoader, normalise
from .sources import Indices, Source


@dataclass(frozen=True, eq=False)
class Images:
    """Some of a source's images, in a fixed order.

    They are decoded on first use and kept as uint8, a quarter of what float32 takes. A training side the size of
    ImageNet's does not fit: leave its `Images` alone and fine-tune through loaders of your own.

    Attributes:
        source: where they come from.
        indices: (N,), which of the source's images.
        mean: a channel, of pixels in [0, 1].
        std: a channel, of pixels in [0, 1].
    """

    source: Source
    indices: Indices
    mean: Sequence[float]
    std: Sequence[float]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def pixels(self) -> Tensor:
        """(N, C, H, W) uint8.

        Raises:
            ValueError: a file that is no image, or of another size than the rest.
        """
        return self.source.decode(self.indices)

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64; decodes nothing."""
        return torch.from_numpy(self.source.labels[self.indices])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        pixels = self.pixels if "pixels" in self.__dict__ else self.source.decode(self.indices[:1])
        channels, height, width = pixels.shape[1:]
        return channels, height, width

    def stream(self, batch_size: int, device: str | torch.device = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 batches and labels in order, one at a time in memory; the last may be smaller.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        for pixels, labels in zip(
            torch.split(self.pixels, batch_size), torch.split(self.labels, batch_size), strict=True
        ):
            yield normalise(pixels.to(device), self.mean, self.std), labels.to(device)

    def batches(self, batch_size: int, device: str | torch.device = "cpu") -> list[tuple[Tensor, Tensor]]:
        """What `stream` gives, all in memory: four bytes a pixel and channel.

        Raises:
            ValueError: a batch size below 1.
        """
        return list(self.stream(batch_size, device))

    def loader(self, batch_size: int, *, augment: bool = True, flip: bool = True, seed: int = 0) -> TrainLoader:
        """Shuffled batches for training; every loader of one seed repeats the same epochs.

        Args:
            batch_size: images a batch; an incomplete last batch is left out (of that epoch only).
            augment: random crops, and flips.
            flip: flips are part of the augmentation.
            seed: of order and augmentation.

        Raises:
            ValueError: a batch size below 1.
        """
        return TrainLoader(
            self.pixels, self.labels, self.mean, self.std, batch_size, augment=augment, flip=augment and flip, seed=seed
        )
