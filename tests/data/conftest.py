"""A small image folder on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Maker = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> Maker:
    """Writes `side/class/NN.png`, every image of one colour: its running number in red, its class in green."""

    def make(
        sides: Mapping[str, Mapping[str, int]], size: tuple[int, int] = (6, 8), mode: str = "RGB", suffix: str = "png"
    ) -> Path:
        number = 0
        for side, classes in sides.items():
            for label, (name, count) in enumerate(sorted(classes.items())):
                folder = tmp_path / "images" / side / name
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = np.zeros((*size, 3), dtype=np.uint8)
                    pixels[..., 0], pixels[..., 1] = number, 100 * label % 256
                    Image.fromarray(pixels).convert(mode).save(folder / f"{index:02d}.{suffix}")
                    number += 1
        return tmp_path / "images"

    return make
