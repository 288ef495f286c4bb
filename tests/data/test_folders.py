"""Image folders: what is listed and decoded, and one clear line for every fault."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.configs.schema import DataConfig
from secateur.data import Images, Splits, load_splits
from secateur.data.sources import ArraySource
from secateur.data.splits import DataSet, draw_splits
from secateur.networks.inference import count_images

Maker = Callable[..., Path]
SIDES = {"train": {"cat": 5, "ant": 4}, "test": {"cat": 2, "ant": 3}}  # images 0-3 ants, 4-8 cats, 9-11 ants, …


def load(root: Path | None, num_classes: int = 2, **values: Any) -> Splits:
    return load_splits(
        DataConfig(name="folder", root=root, **{"calibration": 2, "search": 3, **values}), num_classes=num_classes
    )


def numbers(images: Images) -> list[int]:
    """The running numbers the maker painted."""
    return [int(number) for number in images.pixels[:, 0, 0, 0]]


def test_images_labels_and_order(make_folder: Maker) -> None:
    splits = load(make_folder(SIDES))
    assert splits.classes == ["ant", "cat"]
    assert numbers(splits.test) == [9, 10, 11, 12, 13]
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1]
    assert splits.test.shape == (3, 6, 8)
    assert sorted(numbers(splits.train) + numbers(splits.search)) == list(range(9))
    for images in (splits.calibration, splits.search, splits.train):
        assert images.labels.tolist() == [int(number > 3) for number in numbers(images)]
        assert torch.equal(images.pixels[:, 1, 0, 0], (100 * images.labels).to(torch.uint8))


def test_search_folder_is_the_search_split(make_folder: Maker) -> None:
    splits = load(make_folder({**SIDES, "search": {"cat": 2, "ant": 2}}), search=4, calibration=9)
    assert sorted(numbers(splits.search)) == [14, 15, 16, 17]
    assert sorted(numbers(splits.calibration)) == sorted(numbers(splits.train)) == list(range(9))
    assert "4 in search/" in splits.source


def test_val_stands_in_for_test_only_without_it(make_folder: Maker) -> None:
    root = make_folder({"train": SIDES["train"], "val": SIDES["test"]})
    assert numbers(load(root).test) == [9, 10, 11, 12, 13]
    (root / "val").rename(root / "test")
    make_folder({"val": {"cat": 1, "ant": 1}})
    assert len(load(root).test) == 5


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_what_others_call_val_stands_in_too(make_folder: Maker, name: str) -> None:
    assert numbers(load(make_folder({"train": SIDES["train"], name: SIDES["test"]})).test) == [9, 10, 11, 12, 13]


@pytest.mark.parametrize(("used", "other"), [("test", "valid"), ("test", "val"), ("val", "valid")])
def test_of_two_sides_both_are_named(make_folder: Maker, used: str, other: str) -> None:
    root = make_folder({"train": SIDES["train"], used: SIDES["test"], other: {"cat": 1, "ant": 1}})
    splits = load(root)
    assert numbers(splits.test) == [9, 10, 11, 12, 13]
    assert splits.source.endswith(f"9 in train/, 5 in {used}/; {other}/ is not looked at")


def test_what_an_archive_of_a_mac_adds_is_no_class_and_no_image(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    expected = load(root, calibration=4, search=5)
    for place in (root, root / "train", root / "test", root / "test/ant"):
        (place / "__MACOSX/ant").mkdir(parents=True)
        (place / "__MACOSX/ant/._00.png").write_bytes(b"a fork")
        (place / "__MACOSX/00.png").write_bytes(b"a fork")
    splits = load(root, calibration=4, search=5)
    assert splits.classes == ["ant", "cat"]
    for name in ("train", "test", "search", "calibration"):
        assert numbers(getattr(splits, name)) == numbers(getattr(expected, name))


def test_a_folder_in_the_folder_is_what_was_meant(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    (root.parent / "__MACOSX").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"has no train/ in it: .* – did you mean data\.root={root}\?"):
        load(root.parent)
    (root.parent / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected .*png$"):
        load(root.parent)


def test_a_small_folder_is_split_into_parts_that_hold_every_class(make_folder: Maker) -> None:
    root = make_folder({"train": {"ant": 60, "bee": 12, "cat": 30}, "test": {"ant": 1, "bee": 1, "cat": 1}})
    splits = load(root, 3, calibration=None, search=None)
    shares = {name: np.bincount(getattr(splits, name).labels).tolist() for name in ("search", "calibration", "train")}
    assert shares == {"search": [20, 4, 10], "calibration": [10, 2, 5], "train": [40, 8, 20]}
    assert not set(numbers(splits.search)) & set(numbers(splits.train))
    assert set(numbers(splits.calibration)) <= set(numbers(splits.train))
    other = load(root, 3, calibration=None, search=None, split_seed=1)
    assert set(numbers(other.search)) != set(numbers(splits.search))


def test_a_search_folder_that_is_small_is_taken_whole(make_folder: Maker) -> None:
    splits = load(make_folder({**SIDES, "search": {"cat": 2, "ant": 1}}), calibration=None, search=None)
    assert (len(splits.search), len(splits.calibration)) == (3, 1)


@pytest.mark.parametrize(
    ("images", "search", "calibration"), [(2, 1, 1), (1500, 500, 250), (3000, 1000, 500), (9000, 1000, 500)]
)
def test_how_many_images_where_no_number_is_given(images: int, search: int, calibration: int) -> None:
    source = ArraySource(torch.zeros(images, 1, 1, 1, dtype=torch.uint8), np.arange(images) % 2, 1, None)
    everything = np.arange(images)
    splits = draw_splits(
        DataSet(source, everything, everything, None, ["a", "b"], ""), DataConfig(name="digits", mean=[0], std=[1])
    )
    assert (len(splits.search), len(splits.calibration)) == (search, calibration)


def test_cifar_reads_an_image_folder(make_folder: Maker) -> None:
    root = make_folder({side: {str(label): 2 for label in range(10)} for side in ("train", "test")})
    splits = load_splits(DataConfig(name="cifar10", root=root, calibration=5, search=5), num_classes=10)
    assert len(splits.test) == 20
    assert splits.source.startswith("image folder")


def test_only_what_is_needed_is_decoded(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"damaged")
    splits = load(root)
    with pytest.raises(ValueError, match=r"test/ant/00\.png cannot be read as an image"):
        _ = splits.test.pixels


def test_colour_becomes_grey_where_there_is_one_mean(make_folder: Maker) -> None:
    splits = load(make_folder(SIDES), mean=[0.5], std=[0.5])
    assert splits.test.shape == (1, 6, 8)
    assert int(splits.test.pixels[4, 0, 0, 0]) == round(0.299 * 13 + 0.587 * 100)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "jpg"), ("RGB", "bmp")]
)
def test_other_kinds_of_image_become_rgb(make_folder: Maker, mode: str, suffix: str) -> None:
    assert load(make_folder(SIDES, mode=mode, suffix=suffix)).test.shape == (3, 6, 8)


def test_image_size_brings_all_to_one_size(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    Image.new("RGB", (20, 10)).save(root / "train/ant/00.png")
    splits = load(root, image_size=4, calibration=4, search=5)
    assert splits.calibration.shape == splits.search.shape == splits.test.shape == (3, 4, 4)
    assert sorted(numbers(splits.test)) == [9, 10, 11, 12, 13]


def test_image_size_keeps_the_centre(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    for path in (root / "test").rglob("*.png"):
        pixels = np.zeros((8, 16, 3), dtype=np.uint8)
        pixels[:, 4:12] = 255
        Image.fromarray(pixels).save(path)
    assert int(load(root, image_size=8).test.pixels.min()) == 255


@pytest.mark.parametrize("side", ["train", "test"])
def test_images_of_different_sizes(make_folder: Maker, side: str) -> None:
    root = make_folder(SIDES)
    odd = root / side / "cat/01.png"
    Image.new("RGB", (10, 4)).save(odd)
    # the second of the two sizes is the one that differs: whichever is decoded later
    with pytest.raises(ValueError, match=r"(10×4 pixels.*8×6|8×6 pixels.*10×4): set data\.image_size=") as caught:
        _ = load(root, calibration=4, search=5).test.pixels
    assert str(odd) in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"half"])
def test_a_damaged_image_is_named(make_folder: Maker, damage: bytes) -> None:
    root = make_folder(SIDES, size=(40, 40))
    path = root / "train/ant/02.png"
    path.write_bytes(path.read_bytes()[:60] if damage == b"half" else damage)
    with pytest.raises(ValueError, match=r"train/ant/02\.png cannot be read as an image") as caught:
        load(root, calibration=4, search=5)
    assert "\n" not in str(caught.value)


def test_sixteen_bits_are_refused_not_clipped(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    Image.fromarray(np.full((6, 8), 40_000, dtype=np.uint16)).save(root / "train/ant/02.png")
    with pytest.raises(
        ValueError, match=r"02\.png cannot be read as an image: it has I;16 pixels: convert it to 8 bits"
    ):
        load(root, calibration=4, search=5)


@pytest.mark.parametrize(
    ("sides", "error", "message"),
    [
        ({"test": SIDES["test"]}, FileNotFoundError, r"has no train/ in it: expected train/<class>/"),
        ({"train": SIDES["train"]}, FileNotFoundError, r"has no test/ or val/ or valid/ or validation/ in it"),
        ({"train": {}, "test": SIDES["test"]}, FileNotFoundError, r"train holds no class folders"),
        ({"train": {"cat": 9, "ant": 0}, "test": SIDES["test"]}, ValueError, r"train/ant holds no images \(\.jpg"),
        ({"train": SIDES["train"], "test": {"cat": 2, "ant": 0}}, ValueError, r"test/ant holds no images"),
        ({"train": SIDES["train"], "test": {"cat": 2}}, ValueError, "'ant' is in train/ but not in test/"),
        ({**SIDES, "search": {"cat": 3, "ant": 3, "bee": 3}}, ValueError, "'bee' is in search/ only"),
        ({**SIDES, "search": {"cat": 1, "ant": 1}}, ValueError, r"data\.search=3: the search folder has 2 images"),
        ({"train": {"cat": 2, "ant": 2}, "test": SIDES["test"]}, ValueError, "need 5 images, the training side has 4"),
    ],
)
def test_folders_that_cannot_be_used(make_folder: Maker, sides: Any, error: type[Exception], message: str) -> None:
    root = make_folder(sides)
    for side in sides:
        (root / side).mkdir(exist_ok=True, parents=True)
    with pytest.raises(error, match=message):
        load(root)


def test_too_much_calibration_beside_a_search_folder(make_folder: Maker) -> None:
    root = make_folder({**SIDES, "search": {"cat": 2, "ant": 2}})
    with pytest.raises(ValueError, match=r"data\.calibration=10: the training side has 9 images"):
        load(root, calibration=10)


def test_another_number_of_classes(make_folder: Maker) -> None:
    with pytest.raises(ValueError, match=r"data has 2 classes, network\.num_classes is 3: set network\.num_classes=2"):
        load(make_folder(SIDES), num_classes=3)


def test_hidden_folders_are_no_classes(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    (root / "train/.cache").mkdir()
    assert load(root).classes == ["ant", "cat"]


def test_what_is_hidden_is_no_image_and_a_link_back_is_not_followed(make_folder: Maker) -> None:
    root = make_folder(SIDES)
    expected = numbers(load(root, calibration=4, search=5).test)
    (root / "test/ant/._00.png").write_bytes(b"what a Mac leaves beside an image")
    (root / "test/ant/.checkpoints").mkdir()
    (root / "test/ant/.checkpoints/00.png").write_bytes(b"")
    (root / "test/ant/again").symlink_to(root / "test/ant")
    (root / "test/ant/a.png").mkdir()
    assert numbers(load(root, calibration=4, search=5).test) == expected


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing.png"))


def enormous(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = (200_000).to_bytes(4, "big")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b""))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, r"02\.png is a pipe, not a file"),
        (listening, r"02\.png is a socket, not a file"),
        (dangling, r"No such file or directory: '.*02\.png'"),
        (enormous, r"02\.png cannot be read as an image: Image size .* exceeds limit"),
    ],
)
def test_what_only_looks_like_an_image_is_named(
    make_folder: Maker, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], message: str
) -> None:
    root = make_folder(SIDES)
    monkeypatch.chdir(root / "train/ant")  # a socket's path must be short
    path = Path("02.png")
    path.unlink()
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(root, calibration=4, search=5)
    assert "\n" not in str(caught.value)


def test_roots_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.name=folder needs a folder: set data\.root=DIR"):
        load(None)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: set data\.root=DIR"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"file is not a folder: set data\.root=DIR"):
        load(tmp_path / "file")


def test_test_images_are_decoded_when_they_are_looked_at_and_not_before(
    make_folder: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(f"{path.parent.parent.name}") or real(path))
    splits = load(make_folder(SIDES))
    batches = splits.test.batches(splits.calibration.images_a_pass())
    _ = splits.train.labels, count_images(batches)
    assert opened == ["train"] * 5  # calibration and search images
    _ = list(batches)
    assert opened.count("test") == 6  # one of them twice, for the shape
    _ = list(batches)
    assert opened.count("test") == 6  # they fit into memory


@pytest.mark.parametrize(
    ("size", "resize", "seen"), [(None, None, 80), (64, None, 70), (64, 64, 80), (40, None, 80), (56, 64, 70)]
)
def test_the_margin_round_the_crop(make_folder: Maker, size: int | None, resize: int | None, seen: int) -> None:
    """Of a square of 80 pixels whose columns count up, how many are inside the frame."""
    root = make_folder(SIDES)
    columns = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None] * 3, (80, 80, 3))
    for path in root.rglob("*.png"):
        Image.fromarray(np.ascontiguousarray(columns)).save(path)
    pixels = load(root, image_size=size, resize=resize).test.pixels[0, 0, 0].int()
    assert len(pixels) == (size or 80)
    assert int(pixels[-1] - pixels[0]) / 3 == pytest.approx(seen - 1, abs=2)


def test_a_crop_larger_than_what_it_is_cut_from_is_refused() -> None:
    with pytest.raises(ValueError, match="resize=50, image_size=64"):
        DataConfig(name="folder", image_size=64, resize=50)
