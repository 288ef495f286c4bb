"""Files are whole, or they are not there; what is damaged is seen."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crash import files_of_at_most
from secateur.storage.files import (
    as_bytes,
    check_sha256,
    is_temporary,
    read_tensors,
    recorded_sha256,
    replacing,
    sweep,
    write_json,
    write_tensors,
)

TENSORS = {
    "double": torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(3, 4),
    "half": torch.linspace(0.0, 1.0, 5).bfloat16(),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
    "last": torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    ),
}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "plan.json"
    write_json(path, {"old": 1})

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half of it")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == '{\n  "old": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_file_is_the_umasks_to_say(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "plan.json", {})
        write_tensors(tmp_path / "t.safetensors", TENSORS, record=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("plan.json", "t.safetensors", "t.safetensors.sha256"), mode)


def test_a_recorded_checksum_tells_another_file(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    assert recorded_sha256(path) is None
    check_sha256(path, None)
    write_tensors(path, TENSORS, record=True)
    check_sha256(path, recorded_sha256(path))
    write_tensors(path, {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"t\.safetensors is not the file that was saved here: .*another run's"):
        check_sha256(path, recorded_sha256(path))


def test_folders_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", [1])
    assert (tmp_path / "a" / "b" / "c.json").read_text() == "[\n  1\n]\n"


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    for name in (".plan.json.0123abcd.tmp", "plan.json", ".lock", "mine.tmp"):
        (tmp_path / name).write_text("")
    with replacing(tmp_path / "plan.json") as temporary:
        temporary.write_text("")
        assert is_temporary(temporary)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine.tmp", "plan.json"]


def test_tensors_come_back_as_they_were(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS, {"of": "test"})
    found, about = read_tensors(tmp_path / "t.safetensors")
    assert about == {"of": "test"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


@given(st.data())
def test_a_flipped_bit_is_seen(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    write_tensors(path, TENSORS)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found, _ = read_tensors(path)
    except ValueError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith(f"{path} is damaged (")
    else:  # it did no harm: a blank in the header, say
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_file_is_seen(tmp_path, left):
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
        read_tensors(path)


def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"old": torch.zeros(3)})
    with files_of_at_most(2000), pytest.raises(OSError, match="too large") as full:
        write_tensors(path, {"new": torch.zeros(1000)})
    assert full.value.errno == errno.EFBIG
    assert read_tensors(path)[0].keys() == {"old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_value_of_any_stride_has_its_bytes() -> None:
    whole = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    for tensor in (whole, whole.t(), whole[:1, :1], whole[1:2, 2], whole[2, 3], whole[:0]):
        assert bytes(as_bytes(tensor)) == np.ascontiguousarray(tensor.numpy()).tobytes()
    assert bytes(as_bytes(whole[1:2, 2].as_strided((1,), (144,)))) == np.float64(6).tobytes()
