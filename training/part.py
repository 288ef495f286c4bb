"""One process's part of a batch that several share out, and what the processes put together again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .inputs import describe, leaves, mapped, taken


class LostProcessError(RuntimeError):
    """Another process of a training ended, or cannot be reached."""


@contextmanager
def reaching() -> Iterator[None]:
    """For the length of a block what fails between processes is said in one line."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise  # of what cannot be sent
        raise LostProcessError(
            f"another process of this training is gone ({str(error).splitlines()[0]}): what it wrote says why; what is "
            "on disk is kept"
        ) from error


@dataclass(frozen=True)
class Part:
    """The images of a batch that this process computes: as many as the others', or one less or more.

    A process that has none computes the first, which then counts for nothing: all of them take every step together.

    Attributes:
        images: of the whole batch.
        rank: of this process, from 0.
        size: processes.
        group: of torch.distributed; none is the default one.
    """

    images: int
    rank: int
    size: int
    group: Any = None

    @property
    def start(self) -> int:
        """The first image."""
        return self.rank * self.images // self.size

    @property
    def count(self) -> int:
        """How many images count; 0 is possible."""
        return (self.rank + 1) * self.images // self.size - self.start

    def of(self, tree: Any) -> Any:
        """These images of a batch's inputs or targets."""
        return taken(tree, slice(self.start, self.start + max(self.count, 1)))

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        with reaching():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def each(self, row: Tensor) -> Tensor:
        """(size, d) what each process has, of (d,) that this one has."""
        rows = row.new_zeros(self.size, len(row))
        rows[self.rank] = row
        return self.summed(rows)

    def whole(self, tree: Any) -> Any:
        """Of the outputs for these images those for the batch, everywhere the same; gradients are of this part alone.

        Raises:
            ValueError: there is no tensor among them, or one that has not a row for each image.
        """
        if not leaves(tree):
            raise ValueError(
                f"the network returns {describe(tree)}: it cannot be trained by several processes; start one"
            )
        return mapped(self._whole, tree)

    def _whole(self, tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != max(self.count, 1):
            raise ValueError(
                f"the network returns {describe(tensor)} for {max(self.count, 1)} images: without a row for each it "
                "cannot be trained by several processes; start one"
            )
        own, stop = tensor[: self.count], self.start + self.count
        found = tensor.new_zeros(self.images, *tensor.shape[1:])
        found[self.start : stop] = own.detach()
        self.summed(found)
        return torch.cat([found[: self.start], own, found[stop:]])

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """For the length of a block `whole` puts outputs together."""
        token = _PART.set(self)
        try:
            yield
        finally:
            _PART.reset(token)


_PART: ContextVar[Part | None] = ContextVar("part", default=None)


def whole(outputs: Any) -> Any:
    """Outputs for a whole batch, of those for this process's part of it; as they are where nothing is shared out."""
    part = _PART.get()
    return outputs if part is None else part.whole(outputs)
