"""Where images come from: each source knows all labels at once, and decodes the images it is asked for."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..configs.schema import LARGE
from ..storage.cache import digest
from ..storage.reading import regular

Indices = NDArray[np.int64]

_MODES = {1: "L", 3: "RGB"}


class Source(Protocol):
    """All images of a data set, numbered."""

    @property
    def labels(self) -> Indices:
        """(N,) classes, counted from 0."""
        ...

    def decode(self, indices: Indices) -> Tensor:
        """(len(indices), C, H, W) uint8, in the order asked for."""
        ...

    def original(self, index: int) -> Tensor:
        """(C, H, W) uint8 of one image, neither resized nor cropped."""
        ...

    def identity(self, indices: Indices) -> str:
        """A hash that tells these images from others, none of them being decoded."""
        ...


class ArraySource:
    """Images that are in memory already."""

    def __init__(
        self, pixels: Tensor, labels: Indices, channels: int, image_size: int | None, resize: int | None = None
    ) -> None:
        """Pixels are (N, C, H, W) uint8; `channels` and `image_size` are what `decode` gives, see `_framed`."""
        self._pixels = pixels
        self._channels = channels
        self._image_size, self._resize = image_size, resize
        self.labels = labels

    def decode(self, indices: Indices) -> Tensor:
        """(len(indices), C, H, W) uint8, in the order asked for."""
        return _framed(self._coloured(indices), self._image_size, self._resize)

    def original(self, index: int) -> Tensor:
        """(C, H, W) uint8 of one image, neither resized nor cropped."""
        return self._coloured(np.array([index]))[0]

    def identity(self, indices: Indices) -> str:
        """Of their pixels, as they are here."""
        return digest([self._pixels[torch.from_numpy(indices)]])

    def _coloured(self, indices: Indices) -> Tensor:
        pixels = self._pixels[torch.from_numpy(indices)]
        if pixels.shape[1] == self._channels:
            return pixels
        return pixels.expand(-1, 3, -1, -1) if self._channels == 3 else _tensor(_functional().rgb_to_grayscale(pixels))


class FileSource:
    """Image files, decoded by a few threads."""

    def __init__(
        self, paths: Sequence[Path], labels: Indices, channels: int, image_size: int | None, resize: int | None = None
    ) -> None:
        """Paths and labels go pairwise; `channels` is 1 (grey) or 3 (RGB); for the sizes see `_framed`."""
        self._paths = paths
        self._mode = _MODES[channels]
        self._image_size, self._resize = image_size, resize
        self._first: tuple[Path, torch.Size] | None = None
        self.labels = labels

    def decode(self, indices: Indices) -> Tensor:
        """(len(indices), C, H, W) uint8, in the order asked for.

        Raises:
            ValueError: a file that is no image, or is not of the size of those before it where no `image_size` is set.
        """
        paths = [self._paths[index] for index in indices]
        images = []
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for path, image in zip(paths, pool.map(self._decoded, paths), strict=True):
                self._check_size(path, image)
                images.append(image)
        return torch.stack(images)

    def original(self, index: int) -> Tensor:
        """(C, H, W) uint8 of one image, neither resized nor cropped.

        Raises:
            ValueError: the file is no image.
        """
        return self._open(self._paths[index])

    def identity(self, indices: Indices) -> str:
        """Of the files' names, folders and sizes."""
        found = hashlib.sha256()
        for path in (self._paths[index] for index in indices):
            found.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
        return found.hexdigest()[:32]

    def _decoded(self, path: Path) -> Tensor:
        return _framed(self._open(path), self._image_size, self._resize)

    def _open(self, path: Path) -> Tensor:
        try:
            with Image.open(regular(path)) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has {image.mode} pixels: convert it to 8 bits a channel")
                return _tensor(_functional().pil_to_tensor(image.convert(self._mode)))
        except FileNotFoundError:
            raise
        except Exception as error:  # decoders fail on a damaged file in any way there is
            raise ValueError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from error

    def _check_size(self, path: Path, image: Tensor) -> None:
        if self._first is None:
            self._first = (path, image.shape)
        first, shape = self._first
        if image.shape != shape:
            raise ValueError(
                f"{path} is {image.shape[-1]}×{image.shape[-2]} pixels, {first} is {shape[-1]}×{shape[-2]}: "
                f"set data.image_size={min(shape[-2:])} to bring all to one size"
            )


def _functional() -> ModuleType:
    """A second and a half to import: not before it is needed."""
    return importlib.import_module("torchvision.transforms.functional")


def _framed(pixels: Tensor, image_size: int | None, resize: int | None) -> Tensor:
    """The shorter side resized to `resize`, and the centre cropped to a square of `image_size`; (…, H, W) uint8.

    Where no `resize` is given it is 8/7 of an `image_size` from `LARGE` up (256 for 224, as is usual for ImageNet),
    unless the image is smaller than that; else it is `image_size`.
    """
    if image_size is None or (resize is None and pixels.shape[-2:] == (image_size, image_size)):
        return pixels
    if resize is None:
        margin = image_size * 8 // 7
        resize = margin if image_size >= LARGE and min(pixels.shape[-2:]) >= margin else image_size
    resized = _functional().resize(pixels, [resize], antialias=True)
    return _tensor(_functional().center_crop(resized, [image_size]))


def _tensor(value: Any) -> Tensor:
    """torchvision has no types: say what came out."""
    assert isinstance(value, Tensor)
    return value
