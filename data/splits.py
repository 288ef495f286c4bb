"""How a data set is split: calibration, search, test and fine-tuning images, which never mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..configs.schema import DataConfig
from .images import Images
from .sources import Indices, Source


@dataclass(frozen=True)
class DataSet:
    """A source, and which of its images are for what, before any are drawn.

    Attributes:
        source: all images.
        train: indices of the training side.
        test: indices of the test side.
        search: indices of images set apart for the search, or none: they are then drawn from the training side.
        classes: their names, in the order of the labels.
        description: one line for a report.
    """

    source: Source
    train: Indices
    test: Indices
    search: Indices | None
    classes: list[str]
    description: str


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        calibration: they repair; from the training side.
        search: they pay the reward; from the training side, or from a folder of their own.
        test: only looked at in the end.
        train: for fine-tuning (and pretraining): the whole training side but the search images. Calibration images
            are part of it.
        classes: their names, in the order of the labels.
        source: one line for a report.
    """

    calibration: Images
    search: Images
    test: Images
    train: Images
    classes: list[str]
    source: str


def draw_splits(data: DataSet, config: DataConfig) -> Splits:
    """Draw the images; nothing is decoded yet.

    The training side is shuffled once by `split_seed`: search images are its head and calibration images its tail, so
    that asking for more of one never changes the other. Test images keep their order.

    Raises:
        ValueError: more images asked for than there are.
    """
    rng = np.random.default_rng(config.split_seed)
    shuffled = rng.permutation(data.train)
    if data.search is not None:
        _check("data.search", config.search, len(data.search), "search folder")
        _check("data.calibration", config.calibration, len(shuffled), "training side")
        search = rng.permutation(data.search)[: config.search]
        train = data.train
    else:
        if config.search + config.calibration > len(shuffled):
            raise ValueError(
                f"data.search={config.search} and data.calibration={config.calibration} need "
                f"{config.search + config.calibration} images, the training side has {len(shuffled)}: ask for fewer"
            )
        search = shuffled[: config.search]
        train = np.sort(shuffled[config.search :])
    calibration = shuffled[len(shuffled) - config.calibration :]
    test = data.test
    if config.test is not None:
        _check("data.test", config.test, len(test), "test side")
        test = np.sort(rng.permutation(test)[: config.test])

    def images(indices: Indices) -> Images:
        return Images(data.source, indices, tuple(config.mean), tuple(config.std))

    return Splits(images(calibration), images(search), images(test), images(train), data.classes, data.description)


def _check(key: str, asked: int, available: int, where: str) -> None:
    if asked > available:
        raise ValueError(f"{key}={asked}: the {where} has {available} images: ask for fewer")
