"""A folder that is made at once is whole, or it is not there."""

from __future__ import annotations

import pytest

from secateur.storage.files import is_temporary, sweep
from secateur.storage.folders import whole_folder


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    with whole_folder(out) as temporary:
        (temporary / "a.txt").write_text("a")
        assert not (out / "a.txt").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["a.txt"]


def test_where_the_block_fails_nothing_is_left(tmp_path):
    def stopped() -> None:
        with whole_folder(tmp_path / "out") as temporary:
            (temporary / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_else_wrote_in_the_meantime_stays(tmp_path):
    def late() -> None:
        with whole_folder(tmp_path / "out") as temporary:
            (temporary / "a.txt").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "a.txt").write_text("theirs")

    with pytest.raises(ValueError, match="not empty"):
        late()
    assert (tmp_path / "out" / "a.txt").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    with whole_folder(tmp_path / "out") as temporary:
        assert is_temporary(temporary)
        left = temporary.with_name(f".other{temporary.suffix}")
        left.mkdir()
        (left / "half").write_text("")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
