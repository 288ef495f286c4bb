"""From a config's `data` section to the splits of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..configs.schema import DataConfig
from .folders import LAYOUT, open_folder
from .sources import ArraySource
from .splits import DataSet, Splits, draw_splits

CACHE = Path("~/.cache/secateur")
"""Where CIFAR is downloaded to, unless `data.root` says otherwise."""


def load_splits(config: DataConfig, *, num_classes: int | None) -> Splits:
    """Open a data set and draw its splits; calibration and search images are decoded, the others when first used.

    Args:
        config: which data set, where it is, how it is split.
        num_classes: what the network tells apart; none where nobody says.

    Raises:
        FileNotFoundError: no data there, and none could be downloaded.
        ValueError: as many images or classes as asked for are not there, a damaged image, or images of different
            sizes.
    """
    if len(config.mean) not in (1, 3):
        raise ValueError(f"data.mean has {len(config.mean)} channels: give 1 (grey) or 3 (RGB)")
    data = _open(config)
    if num_classes is not None and len(data.classes) != num_classes:
        raise ValueError(
            f"data has {len(data.classes)} classes, network.num_classes is {num_classes}: "
            f"set network.num_classes={len(data.classes)}"
        )
    splits = draw_splits(data, config)
    for images in (splits.calibration, splits.search):
        _ = images.pixels  # decoded now, so that what is wrong with them shows now
    return splits


def _open(config: DataConfig) -> DataSet:
    if config.name == "digits":
        return _digits(config)
    if config.name == "folder":
        if config.root is None:
            raise ValueError(f"data.name=folder needs a folder: set data.root=DIR, with {LAYOUT}")
        return open_folder(config.root.expanduser(), config)
    root = (config.root or CACHE).expanduser()
    return open_folder(root, config) if (root / "train").is_dir() else _cifar(root, config)


def _digits(config: DataConfig) -> DataSet:
    """scikit-learn's 1,797 digits of 8×8 pixels; every fourth (index i with i % 4 == 0) is on the test side."""
    from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    everything = np.arange(len(pixels))
    test = everything % 4 == 0
    return DataSet(
        source=ArraySource(pixels, bunch.target.astype(np.int64), len(config.mean), config.image_size, config.resize),
        train=everything[~test],
        test=everything[test],
        search=None,
        classes=[str(name) for name in bunch.target_names],
        description=f"scikit-learn's digits: 10 classes, {(~test).sum()} training and {test.sum()} test images",
    )


def _cifar(root: Path, config: DataConfig) -> DataSet:
    """CIFAR as torchvision keeps it, downloaded where it is not there yet."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder: set data.root=DIR")
    from torchvision import datasets  # a second and a half to import: not before it is needed

    kind = datasets.CIFAR10 if config.name == "cifar10" else datasets.CIFAR100
    try:
        train, test = (kind(root, train=side, download=True) for side in (True, False))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{config.name} is not in {root} and cannot be downloaded ({' '.join(str(error).split())}): "
            f"set data.root=DIR, where torchvision keeps it, or an image folder with {LAYOUT}"
        ) from error
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2)
    labels = np.array([*train.targets, *test.targets], dtype=np.int64)
    everything = np.arange(len(labels))
    return DataSet(
        source=ArraySource(pixels, labels, len(config.mean), config.image_size, config.resize),
        train=everything[: len(train.targets)],
        test=everything[len(train.targets) :],
        search=None,
        classes=list(train.classes),
        description=f"{config.name} in {root}: {len(train.targets)} training and {len(test.targets)} test images",
    )
