"""Packed files: what goes in comes out, bit for bit, in no more bytes than the numbers need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.storage.packed import Packed, pack


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, minus zero and NaN too."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().reshape(-1).view(torch.uint8).equal(other.contiguous().reshape(-1).view(torch.uint8))
    )


def drawn(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=random)
    if kind == "dense":
        return dense
    if kind == "sparse":
        return dense * (torch.rand(shape, generator=random) < 0.02)
    if kind.endswith("codebook"):
        shared = torch.randn(16, generator=random)[torch.randint(16, shape, generator=random)]
        gone = torch.rand(shape, generator=random) < (0.9 if kind.startswith("sparse") else 0.0)
        return shared.masked_fill(gone, 0.0)
    scales = torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=random) + 0.1
    codes = torch.randint(-7, 8, shape, generator=random)
    if kind == "sparse grid":
        codes = codes * (torch.rand(shape, generator=random) < 0.1)
    return scales * codes


KINDS = ["dense", "sparse", "codebook", "sparse codebook", "grid", "sparse grid"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**6))
def test_tensors_of_every_kind_come_back(tmp_path_factory, kind: str, shape: list[int], seed: int) -> None:
    path = tmp_path_factory.mktemp("packed") / "t"
    given = {"t": drawn(kind, tuple(shape), seed), "u": torch.arange(3), "z": torch.zeros(0, 4)}
    pack(path, given, {"seed": seed})
    opened = Packed.open(path)
    assert opened.about == {"seed": seed}
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in given.items()}
    found = opened.tensors()
    assert found.keys() == given.keys()
    assert all(same(found[name], given[name]) for name in given)


def test_odd_numbers_come_back(tmp_path: Path) -> None:
    odd = torch.tensor([[0.0, -0.0, float("nan"), float("inf")], [1e-45, -1e38, 3.0, 3.0]])
    others = {
        "half": odd.half(),
        "bfloat": odd.bfloat16(),
        "double": odd.double(),
        "bool": odd > 0,
        "scalar": odd[1, 2],
    }
    pack(tmp_path / "t", {"odd": odd, **others}, {})
    found = Packed.open(tmp_path / "t").tensors()
    assert all(same(found[name], tensor) for name, tensor in {"odd": odd, **others}.items())


@pytest.mark.parametrize(
    ("kind", "coding", "bits"),
    [
        ("codebook", "codebook", 4.05),
        ("sparse codebook", "sparse codebook", 1.0),
        ("grid", "grid", 4.05),
        ("sparse grid", "sparse grid", 1.0),
    ],
)
def test_each_is_written_in_the_way_that_suits_it(tmp_path: Path, kind: str, coding: str, bits: float) -> None:
    tensor = drawn(kind, (64, 32, 3, 3), 0)
    (coded,) = pack(tmp_path / "t", {"t": tensor}, {})
    assert coded.coding == coding
    assert coded.numbers == tensor.numel()
    assert coded.entropy <= coded.bits <= bits * tensor.numel()
    assert coded.bits < coded.entropy * 1.06
    assert coded.bits / 8 < (tmp_path / "t").stat().st_size < coded.bits / 8 + 1500  # the scales, the code, the head


def test_what_is_far_apart_is_told_by_skips(tmp_path: Path) -> None:
    tensor = torch.zeros(1, 5000)
    tensor[0, [0, 255, 256, 511, 4999]] = torch.randn(5)
    (coded,) = pack(tmp_path / "t", {"t": tensor}, {})
    assert coded.coding.startswith("sparse")
    assert same(Packed.open(tmp_path / "t").tensors()["t"], tensor)


def test_a_grid_is_found_whatever_its_scale(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for bits in (2, 3, 4, 6, 8):
        most = 2 ** (bits - 1) - 1
        scales = np.exp(random.normal(size=(200, 1))).astype(np.float32)
        codes = random.integers(-most, most + 1, size=(200, 60)).astype(np.float32)
        (coded,) = pack(tmp_path / "t", {"t": torch.from_numpy(scales * codes)}, {})
        assert coded.coding == "grid"
        assert coded.bits < 60 * 200 * bits * 1.02


def test_a_damaged_file_is_told_from_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "t"
    given = {kind: drawn(kind, (8, 40), 1) for kind in KINDS}
    pack(path, given, {"a": [1, None]})
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        bad[random.integers(len(bad))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(bad))
        with pytest.raises(ValueError, match=r"damaged|no packed network|t: "):
            Packed.open(path).tensors()
    for length in random.integers(0, len(good), 15):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"damaged|no packed network"):
            Packed.open(path).tensors()
    path.write_bytes(good + b"more")
    with pytest.raises(ValueError, match=r"damaged"):
        Packed.open(path)
