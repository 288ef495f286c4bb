"""Batches for training whose images are decoded by other processes when they are due."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..training.augmentation import random_crop, random_flip
from .loaders import Loader, normalise, random_operations
from .sources import Indices, Source

Due = tuple[int, int]
"""An image's place among those of a split, and what its crop is drawn by."""

MOST_WORKERS = 8


class StreamedLoader(Loader):
    """Of images that are decoded anew in every epoch; the same batches for any number of workers."""

    def __init__(
        self,
        source: Source,
        indices: Indices,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        *,
        resized: tuple[int, int] | None,
        augment: bool,
        flip: bool,
        seed: int,
        workers: int | None = None,
        randaugment: int = 0,
    ) -> None:
        """Of the source's images of these indices.

        Args:
            source: decodes them.
            indices: (N,).
            mean: a channel.
            std: a channel.
            batch_size: images a batch.
            resized: (height, width) that random crops are resized to; none for crops that are moved by some pixels.
            augment: crops at all.
            flip: flips.
            seed: of order and augmentation.
            workers: processes; 0 for none but this one, none for one a core.
            randaugment: magnitude of two operations an image; 0 for none.

        Raises:
            ValueError: a batch size below 1, or a negative seed.
        """
        super().__init__(len(indices), batch_size, seed)
        self._images = _Decoded(source, indices, resized)
        self._labels = torch.from_numpy(source.labels[indices])
        self._mean, self._std = mean, std
        self._shift, self._flip, self._magnitude = augment and resized is None, flip, randaugment
        self._workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers

    def _batches(self, chosen: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        draws = [torch.randint(2**31, numbers.shape, generator=generator) for numbers in chosen]
        due = (list(zip(*map(Tensor.tolist, pair), strict=True)) for pair in zip(chosen, draws, strict=True))
        loader = DataLoader(
            self._images, batch_sampler=due, num_workers=self._workers, generator=torch.Generator().manual_seed(0)
        )
        for numbers, pixels in zip(chosen, loader, strict=True):
            if self._shift:
                pixels = random_crop(pixels, generator)
            if self._flip:
                pixels = random_flip(pixels, generator)
            if self._magnitude:
                pixels = random_operations(pixels, self._magnitude, generator)
            yield normalise(pixels, self._mean, self._std), self._labels[numbers]


class _Decoded(Dataset[Tensor]):
    """(C, H, W) uint8 images, decoded when they are asked for."""

    def __init__(self, source: Source, indices: Indices, resized: tuple[int, int] | None) -> None:
        self._source, self._indices = source, indices
        from torchvision.transforms import v2  # a second and a half to import: not before it is needed

        self._crop = None if resized is None else v2.RandomResizedCrop(resized, antialias=True)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, due: Due) -> Tensor:
        number, seed = due
        if self._crop is None:
            return self._source.decode(self._indices[number : number + 1])[0]
        image = self._source.original(int(self._indices[number]))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own state
            torch.manual_seed(seed)
            cropped: Tensor = self._crop(image)
            return cropped
