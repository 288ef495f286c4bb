"""How a data set is split: calibration, search, test and fine-tuning images, which never mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..configs.schema import DataConfig
from .images import Images
from .sources import Indices, Source

SEARCH, CALIBRATION = (1000, 3), (500, 6)  # images where no number is given, and at most which part of a side


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
        train: for fine-tuning (and pretraining): the whole training side but the search images, or as many of them as
            are asked for. Calibration images are part of it, or it is part of them.
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
    that asking for more of one never changes the other; training images are the tail, too, where not all are asked
    for. Test images keep their order. Where a small training side leaves less than the usual number, its classes take
    turns in that order, so that each has its share of all.

    Raises:
        ValueError: more images asked for than there are.
    """
    rng = np.random.default_rng(config.split_seed)
    shuffled = rng.permutation(data.train)
    wanted = _asked(config.calibration, CALIBRATION, len(shuffled))
    if data.search is not None:
        count = min(SEARCH[0], len(data.search)) if config.search is None else config.search
        _check("data.search", count, len(data.search), "search folder")
        _check("data.calibration", wanted, len(shuffled), "training side")
        search, available = rng.permutation(data.search)[:count], shuffled
    else:
        count = _asked(config.search, SEARCH, len(shuffled))
        if count + wanted > len(shuffled):
            raise ValueError(
                f"data.search={count} and data.calibration={wanted} need {count + wanted} images, the training side "
                f"has {len(shuffled)}: ask for fewer, or leave both out"
            )
        if config.search is None and count < SEARCH[0]:
            shuffled = shuffled[_in_turns(data.source.labels[shuffled])]
        search, available = shuffled[:count], shuffled[count:]
    if config.train is not None:
        _check("data.train", config.train, len(available), "training side")
        available = available[len(available) - config.train :]
    train = np.sort(available)
    calibration = shuffled[len(shuffled) - wanted :]
    test = data.test
    if config.test is not None:
        _check("data.test", config.test, len(test), "test side")
        test = np.sort(rng.permutation(test)[: config.test])

    def images(indices: Indices) -> Images:
        return Images(data.source, indices, tuple(config.mean), tuple(config.std))

    return Splits(images(calibration), images(search), images(test), images(train), data.classes, data.description)


def _asked(given: int | None, usual: tuple[int, int], available: int) -> int:
    """So many as are asked for; else the usual number, or the part of a side that it may be."""
    most, part = usual
    return given if given is not None else max(1, min(most, available // part))


def _in_turns(labels: Indices) -> Indices:
    """(N,) an order in which every stretch has of every class its share, as far as whole images go."""
    turns = np.empty(len(labels))
    for label in np.unique(labels):
        of_it = np.flatnonzero(labels == label)
        turns[of_it] = (np.arange(len(of_it)) + 0.5) / len(of_it)
    return np.argsort(turns, kind="stable")


def _check(key: str, asked: int, available: int, where: str) -> None:
    if asked > available:
        raise ValueError(f"{key}={asked}: the {where} has {available} images: ask for fewer")
