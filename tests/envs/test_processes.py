"""Real processes: they evaluate as this one does; no killing of any of them loses a candidate or leaves one behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from secateur.configs.schema import SearchRepair
from secateur.envs import CandidateEvaluator, ParallelEvaluator
from secateur.envs.workers.processes import Processes
from secateur.pruners import Compressor, Context


def make(kind: type[CandidateEvaluator] = CandidateEvaluator, repair: str = "gram") -> CandidateEvaluator:
    context = Context(zoo.make("residual"), zoo.structure("residual"), zoo.batches("residual"), "l1")
    search = zoo.batches("residual", (20, 20), seed=9)
    return kind(Compressor(context), search, SearchRepair(kind=repair))  # type: ignore[arg-type]


def draw(count: int, seed: int = 0) -> list[np.ndarray]:
    rng, dense = np.random.default_rng(seed), zoo.structure("residual").units
    return [rng.integers(1, dense + 1) for _ in range(count)]


def wait_for(condition, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether it runs; a process that has ended but was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path) -> set[int]:
    """The workers that `watched` candidates were evaluated by."""
    return {int(path.read_text()) for path in folder.iterdir()}


def watched(folder: Path, fate: str = "") -> type[CandidateEvaluator]:
    """An evaluator that leaves a file for every candidate, its worker's number in it, before it evaluates.

    Args:
        folder: where they are left, named by what the candidate keeps of the first layer and the attempt.
        fate: of every candidate that keeps 2 of it: `sleep`, the first time, for longer than the test; or `die`.
    """

    class Watched(CandidateEvaluator):  # local, so that workers get the class itself: this file is no module for them
        def evaluate(self, kept):
            attempt = len(list(folder.glob(f"{kept[0]}-*")))
            written = folder.with_suffix(f".{os.getpid()}")
            written.write_text(str(os.getpid()))
            written.rename(folder / f"{kept[0]}-{attempt}")
            if kept[0] == 2 and fate == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if kept[0] == 2 and fate == "sleep" and attempt == 0:
                time.sleep(600)
            return super().evaluate(kept)

    return Watched


@pytest.mark.parametrize("repair", ["gram", "sequential"])
def test_two_workers_evaluate_as_one_process_does(repair: str) -> None:
    serial, evaluator = make(repair=repair), make(repair=repair)
    plans = draw(8)
    with ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 2) as workers:
        found = list(workers.evaluate_all(plans))
    assert found == list(serial.evaluate_all(plans))
    assert evaluator.known == serial.known
    assert workers.seconds["evaluate"] > evaluator.seconds["evaluate"] == 0.0


def test_both_workers_work_and_share_the_tensors_of_one_file(tmp_path: Path) -> None:
    evaluator = make(watched(tmp_path))
    processes = Processes(evaluator, threads=1)
    with ParallelEvaluator(evaluator, processes, 2) as workers:
        for seed in range(100):  # the second may be long in starting
            assert len(list(workers.evaluate_all(draw(4, seed)))) == 4
            if len(pids(tmp_path)) == 2:
                break
        assert len(pids(tmp_path)) == 2
        for pid in pids(tmp_path):
            assert processes.file in Path(f"/proc/{pid}/maps").read_text()
    assert not Path(processes.file).exists()


def test_a_candidate_whose_worker_is_killed_is_evaluated_again(tmp_path: Path) -> None:
    plans = [np.array([count, 3, 4]) for count in (1, 2, 3, 4)]
    evaluator = make(watched(tmp_path, "sleep"))
    marker = tmp_path / "2-0"

    def kill() -> None:
        wait_for(marker.exists)
        os.kill(int(marker.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with (
        pytest.warns(
            RuntimeWarning, match=r"a worker died of the plan with kept \[2, 3, 4\], which is evaluated again"
        ),
        ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 2) as workers,
    ):
        found = list(workers.evaluate_all(plans))
    killer.join()
    assert found == list(make().evaluate_all(plans))
    assert {path.name for path in tmp_path.iterdir()} == {"1-0", "2-0", "2-1", "3-0", "4-0"}


@pytest.mark.filterwarnings("ignore:a worker died")
def test_a_candidate_that_kills_its_workers_ends_the_run(tmp_path: Path) -> None:
    evaluator = make(watched(tmp_path, "die"))
    with (
        pytest.raises(RuntimeError, match=r"3 workers in a row died of the plan with kept \[2, 3, 4\]"),
        ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 2) as workers,
    ):
        list(workers.evaluate_all([np.array([2, 3, 4])]))
    assert len(list(tmp_path.glob("2-*"))) == 3


def test_a_worker_that_dies_idle_is_replaced(tmp_path: Path) -> None:
    evaluator = make(watched(tmp_path))
    with ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 1) as workers:
        workers.evaluate(np.array([1, 3, 4]))
        (pid,) = pids(tmp_path)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid))
        with pytest.warns(RuntimeWarning, match="a worker died"):
            found = workers.evaluate(np.array([3, 3, 4]))
    assert found == make().evaluate(np.array([3, 3, 4]))


def test_leaving_ends_the_workers_at_once_whatever_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = make(watched(tmp_path, "sleep"))

    def interrupted(*_futures, **_when):
        wait_for((tmp_path / "2-0").exists)
        raise KeyboardInterrupt  # no real signal: a test in the background may ignore those

    def leave() -> None:
        with ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 1) as workers:
            workers.evaluate(np.array([1, 3, 4]))
            monkeypatch.setattr("secateur.envs.workers.parallel.wait", interrupted)
            workers.evaluate(np.array([2, 3, 4]))

    with pytest.raises(KeyboardInterrupt):
        leave()
    wait_for(lambda: not any(alive(pid) for pid in pids(tmp_path)))


def test_an_error_in_a_worker_is_the_callers() -> None:
    evaluator = make()
    with (
        pytest.raises(ValueError, match="3 layers"),
        ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 1) as workers,
    ):
        workers.evaluate(np.array([1, 2, 3, 4]))


def test_a_network_that_cannot_be_sent_says_so_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handle:
        """A part of a network that copies of it share, as an open device is."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
            return self

    evaluator = make()
    evaluator.compressor.dense.handle = Handle()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=r"sent to workers \(cannot pickle '_thread.lock'.*set workers to 1") as raised:
        Processes(evaluator, threads=1)
    assert not list(tmp_path.iterdir()), raised.traceback  # which holds what might have closed the file


PARENT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from envs.test_processes import Processes, ParallelEvaluator, make, np, watched

    evaluator = make(watched(Path({folder!r}), "sleep"))
    with ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 2) as workers:
        list(workers.evaluate_all([np.array([count, 3, 4]) for count in (1, 2, 3)]))
"""


def parent(folder: Path, temporary: Path, **options: Any) -> subprocess.Popen[str]:
    """A process of its own that has two workers evaluate three candidates, the second of them for ever."""
    seen = folder / "seen"
    seen.mkdir()
    script = folder / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parents[1]), folder=str(seen)))
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, text=True, **options)


@pytest.mark.slow
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # a socket's path may have a hundred characters
        process = parent(tmp_path, Path(temporary))
        wait_for(lambda: len(list(seen.iterdir())) == 3 or process.poll() is not None)
        assert process.poll() is None
        assert len(pids(seen)) == 2
        assert all(alive(pid) for pid in pids(seen))
        assert list(Path(temporary).glob("secateur-*"))
        process.kill()
        process.wait()
        wait_for(lambda: not any(alive(pid) for pid in pids(seen)))
        assert not list(Path(temporary).glob("secateur-*"))


@pytest.mark.slow
def test_a_temporary_folder_with_too_long_a_name_is_named(tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    _, said = parent(tmp_path, temporary, stderr=subprocess.PIPE).communicate(timeout=300)
    assert f"no worker can be reached below {temporary} (AF_UNIX path too long)" in said
    assert said.strip().endswith("set TMPDIR to a folder with a short name")
    assert not list(temporary.glob("secateur-*"))


def test_workers_leave_an_interrupt_to_their_parent(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to every process; only the parent says what then."""
    evaluator = make(watched(tmp_path))
    with ParallelEvaluator(evaluator, Processes(evaluator, threads=1), 1) as workers:
        workers.evaluate(np.array([1, 3, 4]))
        (pid,) = pids(tmp_path)
        os.kill(pid, signal.SIGINT)
        workers.evaluate(np.array([3, 3, 4]))
        assert pids(tmp_path) == {pid}


def test_workers_have_the_threads_they_are_given() -> None:
    class Counting(CandidateEvaluator):
        def evaluate(self, kept):
            assert torch.get_num_threads() == 3
            return super().evaluate(kept)

    evaluator = make(Counting)
    with ParallelEvaluator(evaluator, Processes(evaluator, threads=3), 1) as workers:
        workers.evaluate(np.array([1, 3, 4]))
