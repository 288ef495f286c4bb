"""CIFAR through torchvision (never downloaded here), and the real images with the real networks."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from secateur.configs import load_config
from secateur.configs.schema import DataConfig
from secateur.data import load_splits
from secateur.networks import build_network


class FakeCifar:
    """What torchvision's CIFAR-10 looks like from outside, of 30 images."""

    classes = tuple("abcdefghij")
    roots: list[Path] = []  # noqa: RUF012

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download
        self.roots.append(root)
        count = 20 if train else 10
        self.data = np.zeros((count, 32, 32, 3), dtype=np.uint8)
        self.data[:, 5, 7, 2] = np.arange(count) + (0 if train else 100)
        self.targets = [index % 10 for index in range(count)]


def config(root: Path | None) -> DataConfig:
    return DataConfig(name="cifar10", root=root, calibration=5, search=6)


def test_cifar_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    splits = load_splits(config(tmp_path), num_classes=10)
    assert splits.test.shape == (3, 32, 32)
    assert splits.test.pixels[:, 2, 5, 7].tolist() == list(range(100, 110))
    assert splits.test.labels.tolist() == list(range(10))
    assert sorted(splits.train.indices.tolist() + splits.search.indices.tolist()) == list(range(20))
    assert splits.classes == list("abcdefghij")


def test_cifar_goes_to_the_cache_without_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    monkeypatch.setattr(FakeCifar, "roots", [])
    load_splits(config(None), num_classes=10)
    assert set(FakeCifar.roots) == {Path("~/.cache/secateur").expanduser()}


@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError("File not found\nor corrupted")])
def test_a_failed_download_names_root_and_remedy(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded \(.*\): set data\.root=DIR") as caught:
        load_splits(config(tmp_path), num_classes=10)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_for_a_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is not a folder: set data\.root=DIR"):
        load_splits(config(tmp_path / "file"), num_classes=10)


@pytest.mark.real
@pytest.mark.parametrize(("depth", "right"), [(20, 932), pytest.param(56, 943, marks=pytest.mark.slow)])
def test_published_networks_score_as_published(depth: int, right: int, real_data: Path) -> None:
    # 91.64 and 92.72 % of 1,017 lossless test images
    root = real_data / "cifar10-lossless"
    settings = load_config(f"cifar10-resnet{depth}", [f"data.root={root}"])
    splits = load_splits(settings.data, num_classes=10)
    network = build_network(settings.network, [root])
    with torch.no_grad():
        found = sum(int((network(x).argmax(1) == y).sum()) for x, y in splits.test.batches(100))
    assert len(splits.test) == 1017
    assert found == right
