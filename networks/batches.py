"""Batches of images, in memory or made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

from torch import Tensor

Batch = tuple[Tensor, Tensor]
Batches = Sequence[Batch]


@dataclass(frozen=True, eq=False)
class LazyBatches(Sequence[Batch]):
    """Batches whose images are made anew whenever they are looked at, so that one at a time is in memory.

    Attributes:
        images: makes the images (N, C, H, W) of a batch, from its number; can be pickled.
        labels: (N,) of every batch, known without its images.
        numbers: of the batches that are meant here.
    """

    images: Callable[[int], Tensor]
    labels: Sequence[Tensor]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> LazyBatches: ...
    def __getitem__(self, index: int | slice) -> Batch | LazyBatches:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        number = self.numbers[index]
        return self.images(number), self.labels[number]


def labels_of(batches: Batches) -> list[Tensor]:
    """The labels (N,) of every batch; images that are not in memory are not made for it."""
    if isinstance(batches, LazyBatches):
        return [batches.labels[number] for number in batches.numbers]
    return [labels for _, labels in batches]


def mapped(batches: Batches, change: Callable[[Tensor], Tensor]) -> LazyBatches:
    """The batches with their images changed when they are looked at; `change` can be pickled."""
    return LazyBatches(partial(_changed, batches, change), labels_of(batches), range(len(batches)))


def _changed(batches: Batches, change: Callable[[Tensor], Tensor], number: int) -> Tensor:
    return change(batches[number][0])
