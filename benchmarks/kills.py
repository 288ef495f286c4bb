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
COMPARED = {"candidates.jsonl": untimed, "compare.json": Path.read_bytes, "plans/*.json": Path.read_bytes}

CASES = {
    "train": Case(("train", "digits", *SET), ("train",), "episodes.jsonl", TRAINED),
    "train, two workers": Case(("train", "digits", *SET, "--set", "workers=2"), ("train",), "episodes.jsonl", TRAINED),
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
    "train, six epochs of pretraining": Case(
        ("train", "digits", *SET, "--set", "network.pretrain.epochs=6"), ("train",), "episodes.jsonl", TRAINED
    ),
}


@dataclass
class Found:
    """What came of a case.

    Attributes:
        seconds: that it takes when nobody kills it.
        killed: how often, by lines that the log held then; -1 where there was no log yet.
        runs: that went on to their end, each the same as the one that nobody killed.
    """

    seconds: float
    killed: Counter[int] = field(default_factory=Counter)
    runs: int = 0


def check(case: Case, folder: Path, kills: int, moments: random.Random) -> Found:
    """Kill a command so many times, at moments drawn evenly from the time that it takes, and compare how it ends.

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
    began = time.perf_counter()
    call(case, case.begin, ("--out", str(folder / "whole")), folder, "cache-whole")
    found = Found(time.perf_counter() - began)
    here = folder / "run-0"
    while sum(found.killed.values()) < kills or here.exists() or not found.runs:
        begun = (here / "config.yaml").exists()
        where = ("--resume" if begun else "--out", str(here))
        last = sum(found.killed.values()) >= kills
        after = None if last else moments.uniform(0.0, found.seconds)
        began = time.perf_counter()
        ended = call(case, case.resume if begun else case.begin, where, folder, f"cache-{here.name}", after)
        if not ended:
            log = here / case.log
            found.killed[log.read_bytes().count(b"\n") if log.exists() else -1] += 1
        elif not begun:  # the machine may be less busy than it was at first
            found.seconds = min(found.seconds, time.perf_counter() - began)
        if ended or (case.closed is not None and (here / case.closed).exists()):
            compare(case, folder / "whole", here)
            found.runs += 1
            here = folder / f"run-{found.runs}"
    return found


def call(
    case: Case, command: Sequence[str], where: Sequence[str], folder: Path, cache: str, after: float | None = None
) -> bool:
    """Run a command in a process of its own; with `after`, kill it so many seconds later, and say whether it ended."""
    arguments = [part.replace("{before}", str(folder / "before")) for part in (*command, *where)]
    said = folder / "said.txt"
    process = SERVER.Process(target=run, args=(arguments, str(said), str(folder / cache)))
    process.start()
    process.join(DEADLINE if after is None else after)
    ended = process.exitcode is not None
    if not ended:
        process.kill()
        process.join()
        assert after is not None, f"{arguments} did not end in {DEADLINE:.0f} s: {said.read_text()}"
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


def compare(case: Case, whole: Path, here: Path) -> None:
    """Whether a run ended as one that nobody killed.

    Raises:
        AssertionError: the file is named.
    """
    for pattern, content in case.same.items():
        names, expected = ({str(path.relative_to(at)) for path in at.glob(pattern)} for at in (here, whole))
        assert names == expected != set(), f"{here}: {names} instead of {expected}"
        for name in names:
            assert content(here / name) == content(whole / name), f"{here / name} is not {whole / name}"
    left = [path.name for path in here.iterdir() if path.suffix == ".tmp" or path.name == ".lock"]
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
        killed, early = sum(found.killed.values()), found.killed[-1] + found.killed[0]
        rows.append([name, f"{found.seconds:.1f}", *map(str, (killed, early, killed - early, found.runs))])
        print(f"{name}: {dict(sorted(found.killed.items()))}", flush=True)
    head = ["command", "seconds", "killed", "before the first line", "later", "runs that ended, each the same"]
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
