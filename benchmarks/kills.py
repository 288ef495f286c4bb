"""Commands killed (kill -9) at random moments and gone on with: they must end as they do when nobody kills them.

python benchmarks/kills.py [--kills 20] [--seed 0] [--only "train; compare"]

On the embedded digits, a search of seconds. A command is one entry of `CASES`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import header, table

from secateur.pruners.saved import REPAIRED_NAME
from secateur.storage.files import read_tensors

SERVER = multiprocessing.get_context("forkserver")  # real processes, that need not import everything first
SERVER.set_forkserver_preload(
    [f"secateur.commands.{name}" for name in ("cli", "train", "apply", "compare")]
    + ["sklearn.datasets", "matplotlib.backends.backend_agg", "tensorboard.summary"]
)

DEADLINE = 600.0  # seconds for anything that is not killed
LOOK = 0.01  # seconds between two looks at a log
EARLY = 0.25  # part of the kills that fall before the first line, which takes most of so short a run


@dataclass(frozen=True)
class Case:
    """A command that is killed, and what it leaves behind.

    Attributes:
        begin: its arguments; `--out FOLDER` is added, and `{before}` is where the command before has written.
        resume: its arguments when it goes on; `--resume FOLDER` is added.
        log: what it achieved, in lines; tells where it was killed.
        same: files, by pattern, and what of each must be as if nobody had killed it.
        closed: the file with which it is finished, if it cannot go on from then on.
        before: a command that is run once, and not killed.
    """

    begin: tuple[str, ...]
    resume: tuple[str, ...]
    log: str
    same: Mapping[str, Callable[[Path], Any]]
    closed: str | None = None
    before: tuple[str, ...] = ()


def untimed(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without their times."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def timeless(path: Path) -> Any:
    """A JSON file, without the times that are anywhere in it."""

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key != "seconds"}

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=keep)


def tensors(path: Path) -> dict[str, bytes]:
    """Of a safetensors file, byte by byte."""
    return {name: tensor.numpy().tobytes() for name, tensor in read_tensors(path)[0].items()}


TINY = ("network.pretrain.epochs=1", "data.calibration=60", "data.search=60", "data.test=60", "agent.hidden=[8]")
TINY += ("agent.episodes=8", "agent.warmup=2", "agent.rerank=1", "repair.search.kind=gram", "repair.final.kind=gram")
SET = tuple(part for override in TINY for part in ("--set", override))
SEARCHES = ("--against", "uniform,random,hill_climb", "--candidates", "4")
TRAINED = {"episodes.jsonl": untimed, "plan.json": Path.read_bytes, "config.yaml": Path.read_bytes}
TRAINED |= {"policy.safetensors": tensors, "dense.safetensors": tensors}
WEIGHTS = ("weights.safetensors", f"{REPAIRED_NAME}/weights.safetensors")
APPLIED = {"network.json": Path.read_bytes, "plan.json": Path.read_bytes, **dict.fromkeys(WEIGHTS, tensors)}
TRAINS = ("--against", "uniform,knapsack", "--finetune", "3", "--seeds", "2", "--schedules", "one_shot,iterative")
COMPARED = {"candidates.jsonl": untimed, "compare.json": Path.read_bytes, "plans/*.json": Path.read_bytes}

CASES = {
    "train": Case(("train", "digits", *SET), ("train",), "episodes.jsonl", TRAINED),
    "train, two workers": Case(
        ("train", "digits", *SET, "--set", "workers=2", "--set", "agent.episodes=24"),
        ("train",),
        "episodes.jsonl",
        TRAINED,
    ),
    "compare": Case(
        ("compare", "{before}", *SEARCHES),
        ("compare", "{before}", *SEARCHES),
        "candidates.jsonl",
        COMPARED,
        closed="compare.json",
        before=("train", "digits", *SET),
    ),
    "apply, fine-tuning": Case(
        ("apply", "{before}", "--finetune", "3"),
        ("apply",),
        f"{REPAIRED_NAME}/network.json",
        APPLIED,
        closed="summary.json",
        before=("train", "digits", *SET),
    ),
    "apply, two rounds": Case(
        ("apply", "{before}", "--finetune", "4", "--schedule", "iterative", "--set", "finetune.rounds=2"),
        ("apply",),
        f"{REPAIRED_NAME}/network.json",
        APPLIED,
        closed="summary.json",
        before=("train", "digits", *SET),
    ),
    "compare, eight trainings, two at a time": Case(
        ("compare", "--config", "digits", *SET, "--set", "workers=2", *TRAINS),
        ("compare", *TRAINS),
        "config.yaml",
        {"compare.json": timeless, "plans/*.json": Path.read_bytes},
        closed="compare.json",
    ),
    "train, six epochs of pretraining": Case(
        ("train", "digits", *SET, "--set", "network.pretrain.epochs=6"), ("train",), "episodes.jsonl", TRAINED
    ),
}


@dataclass
class Found:
    """What came of a case.

    Attributes:
        seconds: that it takes when nobody kills it.
        killed: how often, by lines that the log held then.
        runs: that went on to their end, each the same as the one that nobody killed.
    """

    seconds: float
    killed: Counter[int] = field(default_factory=Counter)
    runs: int = 0


@dataclass
class Course:
    """How a run that nobody kills goes: when its log got each line, and its end, in seconds from the start."""

    log: Path
    lines: list[float] = field(default_factory=list)
    end: float = 0.0

    def __call__(self, seconds: float) -> bool:
        """Look at the log; it goes on."""
        self.lines += [seconds] * (held(self.log) - len(self.lines))
        self.end = seconds
        return False

    def moment(self, log: Path, moments: random.Random) -> Moment:
        """Before the first line (one time in four) or after it, and there evenly over what is left of the run."""
        if moments.random() < EARLY:
            return Moment(log, 0, moments.uniform(0.0, self.lines[0]))
        there = held(log)
        at = moments.uniform(self.lines[max(there, 1) - 1], self.end)
        lines = sum(line <= at for line in self.lines)
        start = self.lines[0] if lines <= there else 0.0  # nothing new to wait for: but for the run to be under way
        return Moment(log, lines, start + at - self.lines[lines - 1])


@dataclass
class Moment:
    """When to kill: so many seconds after the log holds so many lines."""

    log: Path
    lines: int
    delay: float
    since: float | None = None

    def __call__(self, seconds: float) -> bool:
        """Whether it is now, so many seconds from the start."""
        if self.since is None and held(self.log) >= self.lines:
            self.since = seconds if self.lines else 0.0
        return self.since is not None and seconds >= self.since + self.delay


def held(log: Path) -> int:
    """Lines that a log holds."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def check(case: Case, folder: Path, kills: int, moments: random.Random) -> Found:
    """Kill a command so many times, all over the course of the same command when nobody kills it; compare how it ends.

    Args:
        case: the command.
        folder: for all that it writes.
        kills: in all; a run that gets to its end in between is compared, and a new one begun.
        moments: draws them.

    Raises:
        AssertionError: it failed, or ended otherwise.
    """
    warm = SERVER.Process(target=int)  # the server imports everything first, which is no part of the command
    warm.start()
    warm.join()
    if case.before:
        call(case, case.before, ("--out", str(folder / "before")), folder, "cache")
    course = Course(folder / "whole" / case.log)
    call(case, case.begin, ("--out", str(folder / "whole")), folder, "cache-whole", course)
    found = Found(course.end)
    here = folder / "run-0"
    while sum(found.killed.values()) < kills or here.exists() or not found.runs:
        begun = (here / "config.yaml").exists()
        where = ("--resume" if begun else "--out", str(here))
        log = here / case.log
        moment = course.moment(log, moments) if sum(found.killed.values()) < kills else None
        ended = call(case, case.resume if begun else case.begin, where, folder, f"cache-{here.name}", moment)
        if not ended:
            found.killed[held(log)] += 1
        if ended or (case.closed is not None and (here / case.closed).exists()):
            compare(case, folder / "whole", here, ended=ended)
            found.runs += 1
            here = folder / f"run-{found.runs}"
    return found


def call(
    case: Case,
    command: Sequence[str],
    where: Sequence[str],
    folder: Path,
    cache: str,
    over: Callable[[float], bool] | None = None,
) -> bool:
    """Run a command in a process of its own; kill it as soon as it is `over`, and say whether it ended before."""
    arguments = [part.replace("{before}", str(folder / "before")) for part in (*command, *where)]
    said = folder / "said.txt"
    began = time.perf_counter()
    process = SERVER.Process(target=run, args=(arguments, str(said), str(folder / cache)))
    process.start()
    while process.exitcode is None and (seconds := time.perf_counter() - began) < DEADLINE:
        if over is not None and over(seconds):
            break
        process.join(LOOK)
    ended = process.exitcode is not None
    if not ended:
        process.kill()
        process.join()
        assert seconds < DEADLINE, f"{arguments} did not end in {DEADLINE:.0f} s: {said.read_text()}"
    assert process.exitcode in (0, -signal.SIGKILL), f"{arguments} failed: {said.read_text()}"
    return ended


def run(arguments: list[str], said: str, cache: str) -> None:
    """The command line, in this process."""
    os.environ["SECATEUR_CACHE"] = cache
    os.environ["OMP_NUM_THREADS"] = "1"
    from secateur.commands import cli

    sys.argv = ["secateur", *arguments]
    with Path(said).open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        cli.main()


def compare(case: Case, whole: Path, here: Path, *, ended: bool) -> None:
    """Whether a run ended as one that nobody killed; one that was killed when all was written leaves its lock.

    Raises:
        AssertionError: the file is named.
    """
    for pattern, content in case.same.items():
        names, expected = ({str(path.relative_to(at)) for path in at.glob(pattern)} for at in (here, whole))
        assert names == expected != set(), f"{here}: {names} instead of {expected}"
        for name in names:
            assert content(here / name) == content(whole / name), f"{here / name} is not {whole / name}"
    left = [path.name for path in here.iterdir() if path.suffix == ".tmp" or (ended and path.name == ".lock")]
    assert not left, f"{here}: {left} left behind"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--only", help=f"names, with a semicolon in between: {'; '.join(CASES)}")
    args = parser.parse_args()
    names = [name.strip() for name in args.only.split(";")] if args.only else list(CASES)
    print(header(), flush=True)
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = check(CASES[name], Path(folder), args.kills, random.Random(f"{args.seed} {name}"))
        killed, early = sum(found.killed.values()), found.killed[0]
        rows.append([name, f"{found.seconds:.1f}", *map(str, (killed, early, killed - early, found.runs))])
        print(f"{name}: {dict(sorted(found.killed.items()))}", flush=True)
    head = ["command", "seconds", "killed", "before the first line", "later", "runs that ended, each the same"]
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
