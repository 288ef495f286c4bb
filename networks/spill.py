"""Values that would not fit into memory, in a file without a name: gone with the process, however it ends."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..storage.cache import cache_folder
from ..storage.files import as_bytes

SPARE = 2**30  # bytes that stay free on the disk


class _Place(NamedTuple):
    """Where a tensor lies in the file, and how it lay in memory."""

    start: int
    shape: Sequence[int]
    order: Sequence[int]  # dimensions from the widest stride to the narrowest: channels may have been last
    dtype: torch.dtype
    device: torch.device


class Spill:
    """A file in the cache folder, which is on a disk, where the folder of temporary files may be memory itself."""

    def __init__(self, size: int) -> None:
        """For about so many bytes.

        Raises:
            OSError: the disk has not as many to spare, or the folder cannot be written.
        """
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size + SPARE:
            raise OSError(f"{folder} has no {size / 1e9:.1f} GB to spare")
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 – as long as its values
        weakref.finalize(self, self._file.close)

    def put(self, value: Any) -> Spilled:
        """Write a value, tensors in any structure.

        Raises:
            OSError: the disk is full.
        """
        leaves, spec = tree_flatten(value)
        return Spilled(self, [self._write(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _write(self, tensor: Tensor) -> _Place:
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        turned = tensor.permute(order)
        place = _Place(self._file.seek(0, 2), turned.shape, order, tensor.dtype, tensor.device)
        self._file.write(as_bytes(turned))
        return place

    def read(self, place: _Place) -> Tensor:
        """A tensor as it was, its strides too where it was dense."""
        found = torch.empty(place.shape, dtype=place.dtype)
        if found.numel():
            self._file.seek(place.start)
            self._file.readinto(found.reshape(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        return found.permute(tuple(np.argsort(place.order))).to(place.device)


@dataclass(frozen=True)
class Spilled:
    """A value in a file."""

    file: Spill
    leaves: Sequence[Any]
    spec: TreeSpec

    @property
    def value(self) -> Any:
        """Read again, of its own every time."""
        found = [self.file.read(leaf) if isinstance(leaf, _Place) else leaf for leaf in self.leaves]
        return tree_unflatten(found, self.spec)
