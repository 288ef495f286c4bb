"""Batches in order, batches for training, and the caller's own."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from secateur.data import Images, TrainLoader, as_batches
from secateur.data.sources import ArraySource, FileSource
from secateur.data.streaming import StreamedLoader
from secateur.networks.batches import targets_of
from secateur.networks.inference import count_images, first_images
from secateur.training.augmentation import random_crop, random_flip

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def images(count: int = 23, size: int = 8) -> Images:
    """Random pixels; every image's label is its number."""
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    source = ArraySource(pixels.to(torch.uint8), np.arange(count), 3, None)
    return Images(source, np.arange(count), MEAN, STD)


def same(first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(first, second, strict=True))


def restored(batch: Tensor) -> Tensor:
    """Back to bytes."""
    scaled = batch * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    return (scaled * 255).round().to(torch.uint8)


def test_batches_are_normalised_and_in_order() -> None:
    some = images()
    batches = some.batches(10)
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(23))
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64
    by_hand = (some.pixels[4, 1, 2, 3].item() / 255 - 0.5) / 0.2
    assert batches[0][0][4, 1, 2, 3].item() == pytest.approx(by_hand, abs=1e-5)
    assert torch.equal(torch.cat([restored(x) for x, _ in batches]), some.pixels)


def test_what_tells_images_from_others_decodes_nothing(tmp_path) -> None:
    some, again = images(), images()
    assert some.identity == again.identity
    assert some.identity.startswith("23, ")
    again.source._pixels[4, 1, 2, 3] += 1  # type: ignore[attr-defined]
    others = [
        again,
        images(24),
        replace(some, indices=np.flip(some.indices).copy()),
        replace(some, indices=some.indices[1:]),
    ]
    relabelled = images()
    relabelled.source.labels[3] = 0
    assert len({found.identity for found in (some, *others, relabelled)}) == 6

    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text("no image" * number)
    files = [
        Images(FileSource(order, np.arange(3), 3, None), np.arange(3), MEAN, STD) for order in (paths, paths[::-1])
    ]
    first = files[0].identity
    assert files[1].identity != first
    paths[1].write_text("another size")
    assert files[0].identity != first


def test_batch_size_changes_no_value() -> None:
    some = images()
    assert torch.equal(torch.cat([x for x, _ in some.batches(1)]), some.batches(100)[0][0])


def test_pixels_are_decoded_once() -> None:
    some = images()
    assert some.pixels is some.pixels
    assert some.pixels.dtype == torch.uint8


def test_shape_decodes_one_image_only() -> None:
    some = images()
    assert some.shape == (3, 8, 8)
    assert "pixels" not in vars(some)


@pytest.mark.parametrize("size", [8, 32])
def test_augmented_batches_keep_shape_and_labels(size: int) -> None:
    some = images(size=size)
    for batch, labels in some.loader(5, seed=1):
        assert batch.shape == (5, 3, size, size)
        for image, label in zip(restored(batch), labels, strict=True):
            # what is not padding came from the image of that label
            assert set(image.unique().tolist()) <= {0, *some.pixels[label].unique().tolist()}
            assert (image == 0).float().mean() < 0.7


def test_every_epoch_is_another_and_the_seed_repeats_them() -> None:
    some = images()
    first, again, other = some.loader(4, seed=1), some.loader(4, seed=1), some.loader(4, seed=2)
    epochs = [list(first), list(first)]
    assert not same(*epochs)
    assert same(epochs[0], list(again))
    assert same(epochs[1], list(again))
    assert not same(epochs[0], list(other))


def test_an_epoch_sees_every_image_but_the_incomplete_batch() -> None:
    some = images()
    loader = some.loader(5, augment=False, seed=0)
    epoch = list(loader)
    assert len(epoch) == len(loader) == 4
    labels = torch.cat([y for _, y in epoch])
    assert len(labels.unique()) == 20
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal(torch.cat([restored(x) for x, _ in epoch]), some.pixels[labels])  # not augmented


def test_a_batch_larger_than_the_split_is_the_split() -> None:
    loader = images().loader(100, augment=False, seed=0)
    assert len(loader) == 1
    assert sorted(next(iter(loader))[1].tolist()) == list(range(23))


def test_flips_are_left_out_where_asked() -> None:
    # one column is bright: moved a pixel at most it stays on its side, flipped it changes sides
    pixels = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 1] = 255
    some = Images(ArraySource(pixels, np.zeros(64, dtype=np.int64), 1, None), np.arange(64), (0.0,), (1.0,))
    right = {
        flip: sum(float(x[..., 4:].sum()) for x, _ in some.loader(64, flip=flip, seed=0)) for flip in (True, False)
    }
    assert right[True] > 0
    assert right[False] == 0


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([6, 15, 16, 20]), seed=st.integers(0, 10_000))
def test_a_crop_is_one_of_the_shifts(size: int, seed: int) -> None:
    reach = 1 if size < 16 else 4
    image = torch.randint(1, 256, (1, 2, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    cropped = random_crop(image.expand(3, -1, -1, -1), torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(image, (reach,) * 4)[0]
    shifts = [padded[:, y : y + size, x : x + size] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    assert all(any(torch.equal(one, shift) for shift in shifts) for one in cropped)


@pytest.mark.parametrize(("size", "shifts"), [(8, 9), (15, 9), (16, 81)])
def test_crops_reach_every_shift(size: int, shifts: int) -> None:
    image = torch.arange(size * size, dtype=torch.int32).view(1, 1, size, size).expand(2000, -1, -1, -1)
    centres = random_crop(image, torch.Generator().manual_seed(0))[:, 0, size // 2, size // 2]
    assert len(set(centres.tolist())) == shifts


def test_crops_are_part_of_the_augmentation() -> None:
    some = images()
    cropped = [
        not torch.equal(image, some.pixels[label])
        for batch, labels in some.loader(23, flip=False, seed=0)
        for image, label in zip(restored(batch), labels, strict=True)
    ]
    assert sum(cropped) > 12  # eight of nine shifts move the image


@pytest.mark.parametrize("crop", ["shifted", "resized"])
def test_random_operations_follow_the_seed_and_are_part_of_the_augmentation(crop: Any) -> None:
    some, before = images(12, 32), torch.get_rng_state()

    def walked(magnitude: int, seed: int = 0, **options: Any) -> list[tuple[Tensor, Tensor]]:
        return list(some.loader(6, seed=seed, crop=crop, workers=0, randaugment=magnitude, **options))

    plain, strong = walked(0), walked(20)
    assert same(strong, walked(20))
    assert not same(strong, walked(20, seed=1))
    assert torch.equal(torch.cat([y for _, y in plain]), torch.cat([y for _, y in strong]))
    changed = torch.cat([x for x, _ in plain]) != torch.cat([z for z, _ in strong])
    assert int(changed.flatten(1).any(1).sum()) > 6
    assert same(walked(0, augment=False), walked(20, augment=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_flip_mirrors_about_half() -> None:
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(400, -1, -1, -1)
    flipped = random_flip(image, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0] == torch.tensor([3, 2, 1, 0])).all(1)
    assert ((flipped[:, 0, 0] == torch.arange(4)).all(1) | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("make", [lambda: images().batches(0), lambda: images().loader(0)])
def test_no_batch_size_of_zero(make: Any) -> None:
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        make()


def test_no_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed=-1: must be 0 or more"):
        images().loader(2, seed=-1)


def test_as_batches_takes_loaders_and_lists() -> None:
    some = images().batches(10)
    assert same(as_batches(some), some)
    x, y = (torch.cat(part) for part in zip(*some, strict=True))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(x.double(), y.int()), batch_size=10)
    assert same(as_batches(loader), some)
    assert len(as_batches(TrainLoader(images().pixels, y, MEAN, STD, 5, augment=True, flip=True, seed=0))) == 4


X, Y = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are none"),
        (3, "expected a list or loader .* got a int"),
        (X, "expected a list or loader .* got a Tensor"),
        ((X, Y), "batch 0 is float32 .*: expected a pair"),
        ([(X, Y), (X,)], "batch 1 is a tuple .*: expected a pair"),
        ([(X, Y), (X, Y, Y)], "batch 1 has images of 3×4×4,  int64, batch 0 of 3×4×4"),
        ([{"x": X, "y": Y}], r"batch 0 is a dict \(x float32 .*\): expected inputs by name and labels"),
        ([{"labels": Y}], "batch 0 is a dict .*: expected inputs by name and labels"),
        ([(X.numpy(), Y)], "batch 0 holds a ndarray: expected a tensor"),
        ([(X[0], Y)], "batch 0 has 3 images and 2 targets"),
        ([(X.byte(), Y)], "batch 0: the images are uint8 .* expected floats"),
        ([({"x": X, "m": X.byte()}, Y)], "batch 0: m are uint8 .* expected floats"),
        ([(X, Y[:1])], "batch 0 has 2 images and 1 targets"),
        ([(X[:0], Y[:0])], "batch 0 has 0 images"),
        ([(X, Y), (X / 0, Y)], "batch 1: image 0 holds nan: pixels must be numbers within"),
        ([(X + torch.inf, Y)], "batch 0: image 0 holds inf"),
        ([{"a": X, "b": X / 0, "labels": Y}], r"batch 0: image 0 \(b\) holds nan"),
        ([([X[0], X[1] + 1e10], [Y, Y])], r"batch 0: image 1 holds 1e\+10"),
        ([(X, Y), (X[..., 1:], Y)], "batch 1 has images of 3×4×3, batch 0 of 3×4×4"),
    ],
)
def test_batches_that_cannot_be_used(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_batches(batches)


def test_a_split_that_does_not_fit_is_decoded_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    some, kept = images(), images()
    monkeypatch.setattr("secateur.data.images.KEPT", 23 * 3 * 8 * 8 - 1)
    decoded: list[list[int]] = []
    decode = some.source.decode
    monkeypatch.setattr(some.source, "decode", lambda indices: decoded.append(indices.tolist()) or decode(indices))
    batches = some.batches(10)
    assert count_images(batches) == 23
    assert torch.cat(targets_of(batches)).tolist() == list(range(23))
    assert decoded == []  # nothing was looked at
    assert batches[1][0].shape == (10, 3, 8, 8)
    assert decoded == [[0], list(range(10, 20))]  # one for the shape, then one batch
    assert "pixels" not in vars(some)
    assert same(list(batches), list(kept.batches(10)))


def test_slices_of_batches_are_batches() -> None:
    batches = images().batches(5)
    assert same(list(batches[1:3]), list(batches)[1:3])
    assert count_images(batches[3:]) == 8
    assert count_images(first_images(batches, 6)) == 6
    with pytest.raises(IndexError):
        _ = batches[5]


def test_pixels_in_memory_go_to_other_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    some = images()
    batches = some.batches(10)
    _ = some.pixels
    monkeypatch.setattr(type(some.source), "decode", lambda *_: pytest.fail("the source was asked"))
    sent = pickle.loads(pickle.dumps(batches))
    assert same(list(sent), list(batches))


def test_large_images_go_through_a_network_in_smaller_batches() -> None:
    assert images(size=32).images_a_pass() == 100
    assert images(2, size=224).images_a_pass() == 8
    assert images(2, size=224).images_a_pass("cuda") == 25
    assert images(1, size=2000).images_a_pass() == 1


def test_streamed_batches_are_those_of_memory_where_crops_are_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    some = images()
    plain = list(some.loader(5, augment=False, seed=2))
    monkeypatch.setattr("secateur.data.images.KEPT", 0)
    streamed = images().loader(5, augment=False, seed=2, workers=0)
    assert isinstance(streamed, StreamedLoader)
    assert same(plain, list(streamed))
    shifted = list(images().loader(5, flip=False, seed=2, workers=0))
    assert len(shifted) == 4
    assert not same(shifted, plain)
    assert [y.tolist() for _, y in shifted] == [y.tolist() for _, y in plain]


def test_large_images_are_cut_anew_whatever_the_workers() -> None:
    some = images(6, size=64)
    loaders = [some.loader(3, flip=False, seed=1, workers=workers) for workers in (0, 2)]
    epochs = [[list(loader) for _ in range(2)] for loader in loaders]
    assert same(epochs[0][0], epochs[1][0])
    assert same(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0][0][0], epochs[0][1][0][0])
    assert {tuple(x.shape) for x, _ in epochs[0][0]} == {(3, 3, 64, 64)}
    assert isinstance(some.loader(3, augment=False), TrainLoader)
    assert isinstance(some.loader(3, crop="shifted"), TrainLoader)
    assert isinstance(images(6, size=32).loader(3, crop="resized"), StreamedLoader)
