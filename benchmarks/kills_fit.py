"""Commands that train a network, killed at random moments and called again: do they end as if they had never stopped?

    python -m secateur.benchmarks.kills_fit --kills 20

Every child is a process of its own that is killed with SIGKILL; what it left is gone on with until a run is finished,
which is then compared with the uninterrupted one, tensor by tensor.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..storage.files import is_temporary, read_tensors

SERVER = multiprocessing.get_context("forkserver")  # real processes, that need not import everything first
SMALL = (
    *("--set", "data.calibration=100", "--set", "data.search=100", "--set", "data.test=100"),
    *("--set", "agent.episodes=2", "--set", "agent.warmup=1", "--set", "agent.rerank=1", "--set", "agent.updates=1"),
    *("--set", "latency.repeats=1", "--set", "latency.batch=1"),
)


@dataclass(frozen=True)
class Command:
    """A command line, and what it must leave behind.

    Attributes:
        name: for the report.
        begin: its words for a folder.
        go_on: its words for a folder where it was begun.
        equal: files, in the folder, that must be those of the uninterrupted run; of safetensors, the tensors.
    """

    name: str
    begin: Callable[[Path], Sequence[str]]
    go_on: Callable[[Path], Sequence[str]]
    equal: Sequence[str]


def run(words: Sequence[str], cache: Path, log: Path) -> multiprocessing.Process:
    """The command line in a process of its own; what it says goes to the log."""
    process = SERVER.Process(target=_main, args=(list(words), str(cache), str(log)), daemon=True)
    process.start()
    return process


def _main(words: list[str], cache: str, log: str) -> None:
    from ..commands import cli

    os.environ["SECATEUR_CACHE"] = cache
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["secateur", *words]
    cli.main()


def survives(command: Command, kills: int, home: Path, rng: random.Random) -> dict[str, float]:
    """Kill it so many times, each at a moment drawn from the length of a whole run, and compare what comes of it.

    Raises:
        RuntimeError: a run failed, or ended otherwise than the uninterrupted one; the message names the file.
    """
    log = home / "log.txt"
    whole, began = home / "whole", time.perf_counter()
    process = run(command.begin(whole), home / "cache-whole", log)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{command.name}: the uninterrupted run failed; see {log}")
    seconds = time.perf_counter() - began
    done = runs = resumed = 0
    while done < kills:
        folder, cache, killed = home / f"run-{runs}", home / f"cache-{runs}", 0
        while True:
            goes_on = (folder / "config.yaml").exists()
            if goes_on and all((folder / name).exists() for name in (*command.equal, "summary.json")):
                break  # killed after the last write
            process = run((command.go_on if goes_on else command.begin)(folder), cache, log)
            resumed += goes_on
            if done < kills:
                process.join(rng.uniform(0.0, seconds))
            else:
                process.join()
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode == 0:
                break
            if process.exitcode != -signal.SIGKILL:
                raise RuntimeError(f"{command.name}: a run that was killed {killed} times failed; see {log}")
            killed, done = killed + 1, done + 1
        _compare(command, folder, whole)
        runs += 1
    return {"kills": done, "runs": runs, "resumed": resumed, "seconds of a whole run": round(seconds, 1)}


def _compare(command: Command, folder: Path, whole: Path) -> None:
    for name in command.equal:
        same = (folder / name).read_bytes() == (whole / name).read_bytes()
        if name.endswith(".safetensors"):
            (ours, _), (theirs, _) = read_tensors(folder / name), read_tensors(whole / name)
            same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        if not same:
            raise RuntimeError(f"{command.name}: {folder / name} is another than the uninterrupted run's")
    left = [path.name for path in folder.iterdir() if is_temporary(path) or path.name == "finetune.safetensors"]
    if left:
        raise RuntimeError(f"{command.name}: {folder} holds {left[0]}")


def main() -> None:
    """Kill both, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("apply", "pretraining"), default=None)
    options = parser.parse_args()
    SERVER.set_forkserver_preload(["secateur.commands.cli", "secateur.commands.apply", "secateur.commands.train"])
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    dense = home / "dense"
    epochs = str(options.epochs)
    train = ["train", "digits", *SMALL, "--set", f"network.pretrain.epochs={epochs}"]
    commands = {
        "pretraining": Command(
            f"train with {epochs} epochs of pretraining",
            lambda folder: [*train, "--out", str(folder)],
            lambda folder: ["train", "--resume", str(folder)],
            ("dense.safetensors", "plan.json", "policy.safetensors"),
        ),
        "apply": Command(
            f"apply with {epochs} epochs of fine-tuning",
            lambda folder: ["apply", str(dense), "--finetune", epochs, "--out", str(folder)],
            lambda folder: ["apply", "--resume", str(folder)],
            ("weights.safetensors", "repaired/weights.safetensors", "network.json", "plan.json"),
        ),
    }
    first = run([*train, "--out", str(dense)], home / "cache", home / "log.txt")
    first.join()
    for name, command in commands.items():
        if options.only in (None, name):
            (home / name).mkdir()
            print(command.name, survives(command, options.kills, home / name, random.Random(options.seed)), flush=True)


if __name__ == "__main__":
    main()
