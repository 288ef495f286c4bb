"""Batches for training, and the caller's own batches checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..training.augmentation import random_crop, random_flip
from ..training.inputs import Inputs, count, describe, leaves, mapped, shape_of, told
from ..training.objective import Objective
from ..training.tasks import DEFAULT

MOST = 1e9  # of a pixel: beyond, single precision cannot hold the squares of what a network makes of it


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
        randaugment: int = 0,
    ) -> None:
        """Of (N, C, H, W) uint8 pixels and (N,) labels.

        Raises:
            ValueError: a batch size below 1, or a negative seed.
        """
        super().__init__(len(pixels), batch_size, seed)
        self.images = pixels, labels
        self._mean, self._std = mean, std
        self._augment, self._flip, self._magnitude = augment, flip, randaugment

    @property
    def settings(self) -> tuple[object, ...]:
        """What its batches follow from, besides the images; JSON."""
        augmentation = (self._augment, self._flip, self._magnitude)
        return (list(self._mean), list(self._std), self._batch_size, *augmentation, self._seed)

    def _batches(self, chosen: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        stored, labels = self.images
        for numbers in chosen:
            pixels = stored[numbers]
            if self._augment:
                pixels = random_crop(pixels, generator)
            if self._flip:
                pixels = random_flip(pixels, generator)
            if self._magnitude:
                pixels = random_operations(pixels, self._magnitude, generator)
            yield normalise(pixels, self._mean, self._std), labels[numbers]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) uint8 to float32: scaled to [0, 1], less the mean, by the standard deviation of each channel."""
    shift = torch.tensor(mean, device=pixels.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(1, -1, 1, 1)
    return pixels.float().div_(255).sub_(shift).div_(scale)


def random_operations(pixels: Tensor, magnitude: int, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, H, W) uint8 after two operations drawn for it, as strong as that: RandAugment (Cubuk et al.
    2020)."""
    from torchvision.transforms import v2  # a second and a half to import: not before it is needed

    operations = v2.RandAugment(num_ops=2, magnitude=magnitude)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own state
        torch.manual_seed(seed)
        return torch.stack([operations(image) for image in pixels])


def as_batches(
    batches: Iterable[object], objective: Objective = DEFAULT, *, side: str = ""
) -> list[tuple[Inputs, Any]]:
    """A caller's own DataLoader or list, walked once into memory and checked.

    Args:
        batches: what the objective takes apart: for cross-entropy, pairs of images (N, C, H, W) float, normalised, and
            labels (N,) integer.
        objective: none is cross-entropy.
        side: what they are for, in messages.

    Returns:
        Pairs of inputs and targets: floats as float32, the targets' integers as int64. They may share the caller's
        memory.

    Raises:
        ValueError: no batches, or one that is not as above; the message names its number and what is wrong.
    """
    name = f"{side} batch".strip()
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise ValueError(f"{name}es: expected a list or loader of (images, labels), got a {type(batches).__name__}")
    checked = [_checked(f"{name} {number}", batch, objective) for number, batch in enumerate(batches)]
    if not checked:
        raise ValueError(f"{name}es: there are none; give at least one (images, labels)")
    first = told(shape_of(checked[0][0]))
    for number, (images, _) in enumerate(checked):
        if (other := told(shape_of(images))) != first:
            raise ValueError(f"{name} {number} has images of {other}, batch 0 of {first}")
    return checked


def check_pixels(images: Inputs, name: str) -> None:
    """Whether images (N, C, H, W), or what other floats go in, are such that a network's features can be numbers.

    Their squares, too.

    Raises:
        ValueError: a value that is not finite or beyond `MOST`; the message names the image.
    """
    for path, tensor in leaves(images).items():
        if not tensor.is_floating_point() or not tensor.numel() or float(tensor.abs().amax()) <= MOST:
            continue  # NaN compares as false
        wrong = ~(tensor.abs() <= MOST)
        if isinstance(images, list):  # the path is the image's number
            number, where = int(path), ""
        else:
            number, where = int(wrong.nonzero()[0, 0]), f" ({path})" if path else ""
        raise ValueError(
            f"{name}: image {number}{where} holds {float(tensor[wrong][0]):g}: pixels must be numbers within "
            f"±{MOST:g}; normalise them, or leave the image out"
        )


def _checked(name: str, batch: object, objective: Objective) -> tuple[Inputs, Any]:
    try:
        inputs, targets = objective.split(batch)
        images, told_of = count(inputs), count(targets)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    for path, tensor in leaves(inputs).items():
        if tensor.dtype == torch.uint8:
            raise ValueError(f"{name}: {path or 'the images'} are {describe(tensor)}: expected floats, normalised")
    if images != told_of or images == 0:
        raise ValueError(f"{name} has {images} images and {told_of} targets: expected one for each, and some")
    check_pixels(inputs, name)
    return mapped(_as_input, inputs), mapped(_as_target, targets)


def _as_input(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def _as_target(tensor: Tensor) -> Tensor:
    kept = tensor.is_floating_point() or tensor.dtype == torch.bool
    return _as_input(tensor) if kept else tensor.detach().long()
