"""Batches of images, in memory or made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

from ..training.inputs import Inputs

Batch = tuple[Inputs, Any]
"""Inputs and targets: images (N, C, H, W) and labels (N,), or whatever the objective takes."""

Batches = Sequence[Batch]


@dataclass(frozen=True, eq=False)
class LazyBatches(Sequence[Batch]):
    """Batches whose images are made anew whenever they are looked at, so that one at a time is in memory.

    Attributes:
        images: makes the images (N, C, H, W) of a batch, or what else the network takes, from its number; can be
            pickled.
        targets: of every batch, (N,) labels or what else the objective takes; known without its images.
        numbers: of the batches that are meant here.
    """

    images: Callable[[int], Inputs]
    targets: Sequence[Any]
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
        return self.images(number), self.targets[number]


def targets_of(batches: Batches) -> list[Any]:
    """The targets of every batch, labels (N,); images that are not in memory are not made for it."""
    if isinstance(batches, LazyBatches):
        return [batches.targets[number] for number in batches.numbers]
    return [targets for _, targets in batches]


def with_images(batches: Batches, change: Callable[[Inputs], Inputs]) -> LazyBatches:
    """The batches with their images changed when they are looked at; `change` can be pickled."""
    return LazyBatches(partial(_changed, batches, change), targets_of(batches), range(len(batches)))


def _changed(batches: Batches, change: Callable[[Inputs], Inputs], number: int) -> Inputs:
    return change(batches[number][0])
