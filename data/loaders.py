"""Batches for training, and the caller's own batches checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 1e9  # of a pixel: beyond, single precision cannot hold the squares of what a network makes of it
SMALL = 16
"""Images below this many pixels are cropped with a padding of 1, not 4."""


class Loader(ABC):
    """Walks all images once an epoch: shuffled, cropped, flipped, normalised; whole batches at a time.

    Every `iter` begins the next epoch. Epochs differ, and a loader of the same seed repeats them.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        """Of so many images.

        Raises:
            ValueError: a batch size below 1, or a negative seed.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be 0 or more")
        self._count = count
        self._batch_size = min(batch_size, count)
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        # An incomplete batch is left out: of one image, batch norm has no statistics.
        return self._count // self._batch_size

    def set_epoch(self, number: int) -> None:
        """Which epoch, from 0, the next walk is."""
        self._epoch = number

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        state = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        self._epoch += 1
        order = torch.randperm(self._count, generator=generator)
        yield from self._batches(torch.split(order, self._batch_size)[: len(self)], generator)

    @abstractmethod
    def _batches(self, chosen: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the images chosen."""


class TrainLoader(Loader):
    """Of images in memory.

    Attributes:
        images: (N, C, H, W) uint8 pixels and (N,) labels.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        *,
        augment: bool,
        flip: bool,
        seed: int,
    ) -> None:
        """Of (N, C, H, W) uint8 pixels and (N,) labels.

        Raises:
            ValueError: a batch size below 1, or a negative seed.
        """
        super().__init__(len(pixels), batch_size, seed)
        self.images = pixels, labels
        self._mean, self._std = mean, std
        self._augment, self._flip = augment, flip

    @property
    def settings(self) -> tuple[object, ...]:
        """What its batches follow from, besides the images; JSON."""
        return (list(self._mean), list(self._std), self._batch_size, self._augment, self._flip, self._seed)

    def _batches(self, chosen: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        stored, labels = self.images
        for numbers in chosen:
            pixels = stored[numbers]
            if self._augment:
                pixels = random_crop(pixels, generator)
            if self._flip:
                pixels = random_flip(pixels, generator)
            yield normalise(pixels, self._mean, self._std), labels[numbers]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) uint8 to float32: scaled to [0, 1], less the mean, by the standard deviation of each channel."""
    shift = torch.tensor(mean, device=pixels.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(1, -1, 1, 1)
    return pixels.float().div_(255).sub_(shift).div_(scale)


def random_crop(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, H, W) moved by up to 4 pixels either way (1 for small ones), black where it was not."""
    count, channels, height, width = pixels.shape
    padding = 1 if min(height, width) < SMALL else 4
    padded = F.pad(pixels, (padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, H, W) mirrored left to right, or not, with even odds."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def as_batches(
    batches: Iterable[object], *, num_classes: int | None = None, side: str = ""
) -> list[tuple[Tensor, Tensor]]:
    """A caller's own DataLoader or list, walked once into memory and checked.

    Args:
        batches: pairs of images (N, C, H, W) float, normalised, and labels (N,) integer.
        num_classes: labels must be below it; none leaves that unchecked.
        side: what they are for, in messages.

    Returns:
        The same batches: images float32, labels int64. They may share the caller's memory.

    Raises:
        ValueError: no batches, or one that is not as above; the message names its number and what is wrong.
    """
    name = f"{side} batch".strip()
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ValueError(f"{name}es: expected a list or loader of (images, labels), got a {type(batches).__name__}")
    checked = [_checked(f"{name} {number}", batch, num_classes) for number, batch in enumerate(batches)]
    if not checked:
        raise ValueError(f"{name}es: there are none; give at least one (images, labels)")
    first = checked[0][0].shape[1:]
    for number, (images, _) in enumerate(checked):
        if images.shape[1:] != first:
            raise ValueError(f"{name} {number} has images {tuple(images.shape[1:])}, batch 0 has {tuple(first)}")
    return checked


def check_pixels(images: Tensor, name: str) -> None:
    """Whether images (N, C, H, W) are such that a network's features, and their squares, can be numbers.

    Raises:
        ValueError: a value that is not finite or beyond `MOST`; the message names the image.
    """
    if len(images) and not float(images.abs().amax()) <= MOST:  # NaN compares as false
        each = images.flatten(1)
        number = int((~(each.abs() <= MOST)).any(1).nonzero()[0])
        found = each[number][~(each[number].abs() <= MOST)][0]
        raise ValueError(
            f"{name}: image {number} holds {float(found):g}: pixels must be numbers within ±{MOST:g}; normalise them, "
            "or leave the image out"
        )


def _checked(name: str, batch: object, num_classes: int | None) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(f"{name} is a {type(batch).__name__}{size}: expected a pair (images, labels)")
    images, labels = batch
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"{name}: expected images (N, C, H, W) of floats, got {_describe(images)}")
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name}: expected labels (N,) of integers, got {_describe(labels)}")
    if labels.dtype == torch.bool:
        raise ValueError(f"{name}: expected labels (N,) of integers, got {_describe(labels)}")
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels: expected one for each, and some")
    check_pixels(images, name)
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or (num_classes is not None and most >= num_classes):
        wrong, limit = (least, "0 or more") if least < 0 else (most, f"below num_classes={num_classes}")
        raise ValueError(f"{name}: label {wrong} must be {limit}")
    return images.detach().float(), labels.detach().long()


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a {type(value).__name__}"
