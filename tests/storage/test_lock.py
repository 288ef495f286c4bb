"""One writer a folder: in one process, in several, on other hosts, and after a kill -9."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from secateur.storage import lock
from secateur.storage.folders import claimed, free_folder
from secateur.storage.lock import LOCK_NAME, alone, is_held

HOLD = "import sys; from pathlib import Path; from secateur.storage.lock import alone\n"
HOLD += "with alone(Path(sys.argv[1])): print('held'); input()"


@pytest.fixture(params=["locks", "no locks"])
def folder(request, tmp_path, monkeypatch) -> Path:
    """A file system that knows locks, and one that knows none."""
    if request.param == "no locks":

        def absent(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", absent)
    return tmp_path


def write(folder: Path, **changes) -> None:
    mine = {"host": platform.node(), "pid": os.getpid(), "started": lock._started(os.getpid())}
    (folder / LOCK_NAME).write_text(json.dumps({**mine, **changes}))


def test_two_calls_of_one_process(folder):
    with alone(folder):
        assert is_held(folder)
        with pytest.raises(ValueError, match=r"this process writes there already .*; wait for it, or choose another"):
            alone(folder).__enter__()
        assert is_held(folder)
    assert list(folder.iterdir()) == []
    with alone(folder):
        pass


def test_of_many_threads_one_gets_it(folder):
    got, refused, begin, end = [], [], threading.Barrier(8), threading.Barrier(8)

    def try_it(number: int) -> None:
        begin.wait()
        try:
            with alone(folder):
                got.append(number)
                end.wait()
        except ValueError as error:
            refused.append(str(error))
            end.wait()

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(got), len(refused)) == (1, 7)


def test_of_many_threads_one_takes_over_what_was_left(tmp_path):
    write(tmp_path, started="before")
    test_of_many_threads_one_gets_it(tmp_path)


@pytest.mark.parametrize("left", [True, False])
def test_what_another_took_since_it_was_looked_at_is_its(folder, monkeypatch, left):
    """Of two that found no owner, or the same one gone, on a file system without locks."""
    if left:
        write(folder, started="before")
    judge = lock._owner

    def slow(text):
        monkeypatch.setattr(lock, "_owner", judge)
        write(folder, host="far-away")
        return judge(text)

    monkeypatch.setattr(lock, "_owner", slow)
    with pytest.raises(ValueError, match="far-away writes there"):
        alone(folder).__enter__()
    assert [path.name for path in folder.iterdir()] == [LOCK_NAME]
    assert "far-away" in (folder / LOCK_NAME).read_text()


def test_another_process_until_it_is_killed(folder):
    command = [sys.executable, "-u", "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        expected = rf"another process writes there \(process {other.pid} on .*\); wait for it, or choose another folder"
        with pytest.raises(ValueError, match=expected):
            alone(folder).__enter__()
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
        assert not is_held(folder)
        other.wait()
        assert (folder / LOCK_NAME).exists()
        with alone(folder):
            assert json.loads((folder / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_on_another_host_it_is_named_with_the_file_to_delete(folder):
    write(folder, host="far-away", pid=17)
    with pytest.raises(ValueError, match=rf"process 17 on far-away writes there; .* delete {folder / LOCK_NAME}$"):
        alone(folder).__enter__()
    assert "far-away" in (folder / LOCK_NAME).read_text()


@pytest.mark.parametrize("left", [{"started": "another boot 17"}, {"pid": 2**22 + 1}])
def test_a_number_that_another_process_has_now_holds_nothing(folder, left):
    write(folder, **left)
    with alone(folder):
        pass


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"host": "x"}', '{"host": 1, "pid": "x", "started": 0}'])
def test_what_names_nobody_holds_nothing(folder, text, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    (folder / LOCK_NAME).write_text(text)  # version 0.1 left an empty one in every folder
    with alone(folder):
        assert is_held(folder)


def test_what_another_took_meanwhile_is_left_to_it(folder):
    with alone(folder):
        write(folder, host="far-away")
    assert is_held(folder)


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps here")
def test_the_system_without_proc(monkeypatch):
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: "/proc" not in str(self) and real(self))
    own = lock._started(os.getpid())
    assert own == lock._started(os.getpid())
    assert lock._started(2**22 + 1) is None


def test_the_next_folder_is_taken_where_a_run_is_about_to_begin(tmp_path):
    first = tmp_path / "run"
    first.mkdir()
    with alone(first):
        assert free_folder(None, first) == tmp_path / "run-2"
    assert free_folder(None, first) == first


def test_a_folder_that_filled_since_it_was_found_free_is_refused(tmp_path):
    folder = free_folder(None, tmp_path / "run")
    with claimed(folder, "train", "log", new=True):
        (folder / "log").touch()
    with (
        pytest.raises(ValueError, match="is not empty, and nothing is overwritten"),
        claimed(folder, "t", "log", new=True),
    ):
        pass
    assert [path.name for path in folder.iterdir()] == ["log"]
