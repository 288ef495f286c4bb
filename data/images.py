"""One split's images: kept as bytes where they are few, decoded when they are looked at where they are many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ..configs.schema import LARGE, Crop
from ..networks.batches import LazyBatches
from ..storage.cache import digest
from .loaders import Loader, TrainLoader, normalise
from .sources import ArraySource, Indices, Source
from .streaming import StreamedLoader

KEPT = 2**29  # bytes that a split's pixels may take in memory: 3,500 images of 224×224, 170,000 of 32×32
PASS = 8 * 224**2  # pixels a forward pass, if nobody says: a VGG's first feature maps are 64 times as large
PASS_ON_GPU = 25 * 224**2  # which fewer would leave idle


@dataclass(frozen=True, eq=False)
class Images:
    """Some of a source's images, in a fixed order.

    Where they take no more than `KEPT` bytes they are decoded once, on first use, and kept as uint8, a quarter of what
    float32 takes. Of a larger split (ImageNet's) paths and labels alone are in memory, and every batch is decoded when
    it is looked at.

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
        """(N, C, H, W) uint8, all of them in memory.

        Raises:
            ValueError: a file that is no image, or of another size than the rest.
        """
        return self.source.decode(self.indices)

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64; decodes nothing."""
        return torch.from_numpy(self.source.labels[self.indices])

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        pixels = self.pixels if "pixels" in self.__dict__ else self.source.decode(self.indices[:1])
        channels, height, width = pixels.shape[1:]
        return channels, height, width

    @property
    def kept(self) -> bool:
        """Whether their pixels stay in memory once they are decoded."""
        return "pixels" in self.__dict__ or len(self) * int(np.prod(self.shape)) <= KEPT

    @property
    def identity(self) -> str:
        """How many, and a hash of what the source tells of them and of their labels; decodes nothing."""
        content = f"{self.source.identity(self.indices)} {digest([self.labels])}"
        return f"{len(self)}, {hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def batches(self, batch_size: int | None = None, device: str | torch.device = "cpu") -> LazyBatches:
        """Normalised float32 batches and labels in order, each made when it is looked at; the last may be smaller.

        Args:
            batch_size: images a batch; none takes 100, and fewer of large ones.
            device: where they are to be.

        Raises:
            ValueError: a batch size below 1.
        """
        size = batch_size if batch_size is not None else self.images_a_pass(device)
        if size < 1:
            raise ValueError(f"batch_size={size}: must be at least 1")
        labels = [part.to(device) for part in torch.split(self.labels, size)]
        return LazyBatches(partial(self._batch, size, torch.device(device)), labels, range(len(labels)))

    def _batch(self, size: int, device: torch.device, number: int) -> Tensor:
        chosen = slice(number * size, (number + 1) * size)
        pixels = self.pixels[chosen] if self.kept else self.source.decode(self.indices[chosen])
        return normalise(pixels.to(device), self.mean, self.std)

    def __reduce__(self) -> tuple[object, ...]:
        """Where pixels are in memory they alone are sent to another process: a source may list a million files."""
        if "pixels" not in self.__dict__:
            return Images, (self.source, self.indices, self.mean, self.std)
        return _in_memory, (self.pixels, self.labels, self.mean, self.std)

    def images_a_pass(self, device: str | torch.device = "cpu") -> int:
        """How many are run through a network at a time, if nobody says."""
        pixels = PASS if torch.device(device).type == "cpu" else PASS_ON_GPU
        return max(1, min(100, pixels // int(np.prod(self.shape[1:]))))

    def loader(
        self,
        batch_size: int,
        *,
        augment: bool = True,
        flip: bool = True,
        seed: int = 0,
        crop: Crop | None = None,
        workers: int | None = None,
        randaugment: int = 0,
    ) -> Loader:
        """Shuffled batches for training; every loader of one seed repeats the same epochs.

        Args:
            batch_size: images a batch; an incomplete last batch is left out (of that epoch only).
            augment: random crops, and flips.
            flip: flips are part of the augmentation.
            seed: of order and augmentation.
            crop: `shifted`, by a few pixels, or `resized`, a part of random place, size and shape brought to full
                size, which is cut from the images as their source has them; none takes `resized` from 64 pixels up.
            workers: processes that decode what is not kept in memory, or is cut anew; none for one a core.
            randaugment: magnitude of RandAugment, part of the augmentation; 0 for none.

        Raises:
            ValueError: a batch size below 1.
        """
        size = (self.shape[1], self.shape[2])
        magnitude = randaugment if augment else 0
        resized = augment and (crop == "resized" or (crop is None and min(size) >= LARGE))
        if self.kept and not resized:
            return TrainLoader(
                self.pixels,
                self.labels,
                self.mean,
                self.std,
                batch_size,
                augment=augment,
                flip=augment and flip,
                seed=seed,
                randaugment=magnitude,
            )
        return StreamedLoader(
            self.source,
            self.indices,
            self.mean,
            self.std,
            batch_size,
            resized=size if resized else None,
            augment=augment,
            flip=augment and flip,
            seed=seed,
            workers=workers,
            randaugment=magnitude,
        )


def _in_memory(pixels: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Images:
    source = ArraySource(pixels, labels.numpy(), pixels.shape[1], None)
    found = Images(source, np.arange(len(pixels)), mean, std)
    found.__dict__["pixels"] = pixels  # not a copy of them: workers share the memory that they are mapped into
    return found
