"""Splits: disjoint, repeatable, of the right side; and what is said when they cannot be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secateur.configs.schema import DataConfig
from secateur.data import Images, Splits, load_splits


def digits(**values: Any) -> DataConfig:
    settings = {"mean": [0.3], "std": [0.4], "calibration": 50, "search": 60, **values}
    return DataConfig(name="digits", **settings)


def chosen(images: Images) -> set[int]:
    return set(images.indices.tolist())


def test_sizes_and_sides() -> None:
    splits = load_splits(digits(), num_classes=10)
    assert [len(s) for s in (splits.calibration, splits.search, splits.test, splits.train)] == [50, 60, 450, 1287]
    assert all(index % 4 == 0 for index in chosen(splits.test))
    assert splits.classes == [str(digit) for digit in range(10)]
    assert "\n" not in splits.source
    assert splits.test.shape == (1, 8, 8)


@pytest.mark.parametrize(("calibration", "search"), [(1, 1), (50, 60), (600, 747), (1346, 1)])
def test_splits_never_mix(calibration: int, search: int) -> None:
    splits = load_splits(digits(calibration=calibration, search=search), num_classes=10)
    assert len(chosen(splits.calibration)) == calibration
    assert len(chosen(splits.search)) == search
    assert not chosen(splits.calibration) & chosen(splits.search)
    assert not chosen(splits.train) & chosen(splits.search)
    assert chosen(splits.calibration) <= chosen(splits.train)
    assert not chosen(splits.test) & (chosen(splits.train) | chosen(splits.search))
    assert len(chosen(splits.train) | chosen(splits.search)) == 1347


def drawn(splits: Splits) -> list[list[int]]:
    return [s.indices.tolist() for s in (splits.calibration, splits.search, splits.test, splits.train)]


def test_split_seed_draws_them() -> None:
    first, same, other = (load_splits(digits(split_seed=seed, test=90), num_classes=10) for seed in (1, 1, 2))
    assert drawn(first) == drawn(same)
    assert all(a != b for a, b in zip(drawn(first), drawn(other), strict=True))


def test_asking_for_more_of_one_leaves_the_other() -> None:
    base = load_splits(digits(), num_classes=10)
    more_search = load_splits(digits(search=500), num_classes=10)
    more_calibration = load_splits(digits(calibration=500), num_classes=10)
    assert np.array_equal(base.calibration.indices, more_search.calibration.indices)
    assert np.array_equal(base.search.indices, more_calibration.search.indices)
    assert np.array_equal(base.search.indices, more_search.search.indices[:60])


def test_test_images_keep_their_order() -> None:
    everything = load_splits(digits(), num_classes=10).test.indices
    some = load_splits(digits(test=40), num_classes=10).test.indices
    assert np.array_equal(everything, np.arange(0, 1797, 4))
    assert len(some) == 40
    assert np.array_equal(some, np.sort(some))
    assert set(some.tolist()) < set(everything.tolist())


def test_calibration_and_search_are_decoded_the_rest_waits() -> None:
    splits = load_splits(digits(), num_classes=10)
    done = {name for name in ("calibration", "search", "test", "train") if "pixels" in vars(getattr(splits, name))}
    assert done == {"calibration", "search"}


def test_digits_are_bytes_of_the_right_value() -> None:
    from sklearn.datasets import load_digits

    test = load_splits(digits(), num_classes=10).test
    bunch = load_digits()
    assert test.pixels.dtype == torch.uint8
    assert torch.equal(test.pixels[3, 0], torch.from_numpy(np.round(bunch.images[12] * 255 / 16).astype(np.uint8)))
    assert int(test.pixels.max()) == 255
    assert test.labels.tolist() == bunch.target[::4].tolist()


def test_grey_images_become_rgb_where_there_are_three_means() -> None:
    grey = load_splits(digits(), num_classes=10).test.pixels
    colour = load_splits(digits(mean=[0.3] * 3, std=[0.4] * 3), num_classes=10).test.pixels
    assert colour.shape == (450, 3, 8, 8)
    assert all(torch.equal(colour[:, channel : channel + 1], grey) for channel in range(3))


def test_image_size_applies_to_arrays() -> None:
    assert load_splits(digits(image_size=12), num_classes=10).search.shape == (1, 12, 12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": 1300, "calibration": 48}, "need 1348 images, the training side has 1347"),
        ({"test": 451}, r"data\.test=451: the test side has 450 images"),
        ({"mean": [0.3, 0.3], "std": [0.4, 0.4]}, r"data\.mean has 2 channels"),
    ],
)
def test_what_cannot_be_drawn(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(digits(**values), num_classes=10)


def test_another_number_of_classes() -> None:
    with pytest.raises(
        ValueError, match=r"data has 10 classes, network\.num_classes is 11: set network\.num_classes=10"
    ):
        load_splits(digits(), num_classes=11)


def test_fewer_training_images_are_the_tail_and_change_nothing_else() -> None:
    base, fewer, fewest = (load_splits(digits(train=count), num_classes=10) for count in (None, 200, 30))
    assert [len(splits.train) for splits in (fewer, fewest)] == [200, 30]
    assert drawn(base)[:3] == drawn(fewer)[:3] == drawn(fewest)[:3]
    assert chosen(fewest.train) < chosen(fewest.calibration) < chosen(fewer.train) < chosen(base.train)
    assert np.array_equal(fewer.train.indices, np.sort(fewer.train.indices))
    with pytest.raises(ValueError, match=r"data\.train=1288: the training side has 1287 images"):
        load_splits(digits(train=1288), num_classes=10)
