"""Candidates evaluated by several workers: how many a minute, and what a Ray cluster does that loses a node.

python benchmarks/workers.py [--data DIR] [--workers 2] [--ray 40]

Without DIR on the embedded digits; with it on the CIFAR-10 ResNet-20 (DIR holds cifar10/ and weights/).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import cifar_session, header, table

import secateur
from secateur import Session
from secateur.agents import SearchProblem
from secateur.agents.allocators.searches import random_plans
from secateur.envs import Evaluation, Evaluator, ParallelEvaluator
from secateur.envs.workers.processes import Processes
from secateur.reports.progress import Advance, Reporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="none: digits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="in which one process and the workers take turns")
    parser.add_argument("--plans", type=int, default=12, help="that each evaluates in a round")
    parser.add_argument("--ray", type=int, metavar="N", help="instead: search N candidates on two Ray nodes, kill one")
    args = parser.parse_args()
    if args.ray:
        print(header())
        lose_a_node(args.ray)
        return
    session = cifar_session(20, args.data, "threads=1") if args.data else Session("digits")
    print(header())
    take_turns(session, args.workers, args.rounds, args.plans)


def take_turns(session: Session, workers: int, rounds: int, plans: int) -> None:
    """One process and the workers evaluate the same plans, in alternation."""
    evaluator = session.evaluator
    drawing = SearchProblem(session.budget, session.context, rng=np.random.default_rng(0))
    drawn = random_plans(drawing, (rounds + 5) * plans)
    processes = Processes(evaluator, threads=1)
    alone: list[Measured] = []
    together: list[Measured] = []
    with ParallelEvaluator(evaluator, processes, workers) as parallel:
        began = time.perf_counter()
        while drawn and len(mapping(processes.file)) < workers:
            list(parallel.evaluate_all([drawn.pop() for _ in range(workers)]))
        seconds = time.perf_counter() - began
        print(f"{seconds:.1f} s until {workers} workers had started. {memory(processes.file)}\n", flush=True)
        for _ in range(rounds):
            mine, drawn = drawn[:plans], drawn[plans:]
            alone.append(measure(evaluator, mine, []))
            evaluator.known.clear()
            together.append(measure(parallel, mine, mapping(processes.file)))
            assert together[-1].found == alone[-1].found, "workers find something else"
    rows = []
    for name, turns in (("one process", alone), (f"{workers} workers", together)):
        minutes = [60 * plans / turn.seconds for turn in turns]
        spread = f"{min(minutes):.1f} … {max(minutes):.1f}"
        rows.append([name, f"{median(minutes):.1f}", spread, f"{median(turn.cpu / plans for turn in turns):.2f}"])
    print(table(["", "candidates a minute", "least … most", "CPU s a candidate"], rows))
    ratios = [one.seconds / two.seconds for one, two in zip(alone, together, strict=True)]
    print(
        f"\n{session.config.name}: {rounds} rounds of {plans} candidates, the same for both, in turns; one thread a "
        f"process, all evaluations equal. {workers} workers over one process, round by round: "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {median(ratios):.2f}. Load average at the end "
        f"{os.getloadavg()[0]:.1f}, {os.cpu_count()} cores."
    )


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock and of all processors together, and what was found."""

    seconds: float
    cpu: float
    found: list[Evaluation]


def measure(evaluator: Evaluator, plans: Sequence[np.ndarray], workers: Sequence[int]) -> Measured:
    start, used = time.perf_counter(), time.process_time() + cpu_seconds(workers)
    found = list(evaluator.evaluate_all(plans))
    return Measured(time.perf_counter() - start, time.process_time() + cpu_seconds(workers) - used, found)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Of other processes, all their threads."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def mapping(file: str) -> list[int]:
    """The processes that have a file mapped into memory."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if file in maps.read_text():
                found.append(int(maps.parent.name))
    return found


def memory(file: str) -> str:
    """What the workers hold, their own and shared, in a line."""
    own, resident = [], []
    for pid in mapping(file):
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in lines}
        own.append((kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024)
        resident.append(kilobytes["Rss"] / 1024)
    size = Path(file).stat().st_size / 2**20
    return (
        f"A worker holds {median(own):.0f} MB of its own and shares {median(resident) - median(own):.0f} MB with "
        f"others, {size:.0f} MB of it the file that all map."
    )


def lose_a_node(candidates: int) -> None:
    """A random search on a Ray cluster of two nodes on this machine, one of which is killed half-way."""
    from ray.cluster_utils import Cluster

    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)

    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    say("a Ray cluster of two nodes, one CPU each")

    class Killer(Reporter):
        """Kills the second node when half of the candidates are evaluated."""

        @contextlib.contextmanager
        def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
            def advance(note: str = "") -> None:
                nonlocal done
                done += 1
                if total == candidates and done in (1, candidates // 2, candidates):
                    say(f"{done} of {candidates} candidates evaluated")
                if total == candidates and done == candidates // 2:
                    cluster.remove_node(second, allow_graceful=False)
                    say("the second node killed")

            yield advance

    settings: dict[str, Any] = {"against": ["random"], "candidates": candidates}
    with tempfile.TemporaryDirectory() as folder:
        for name, where, reporter in (
            ("ray", {"ray_address": cluster.address, "overrides": ["workers=2"]}, Killer()),
            ("alone", {}, Reporter()),
        ):
            session = Session("digits", reporter=reporter, **where)
            secateur.compare((), session, **settings, out=Path(folder) / name)
            say(f"search finished: {name}")
        logs = [(Path(folder) / name / "candidates.jsonl").read_text() for name in ("ray", "alone")]
    cluster.shutdown()
    assert len(logs[0].splitlines()) == candidates
    say(f"the same {candidates} candidates, evaluations and order as one process alone: {logs[0] == logs[1]}")


if __name__ == "__main__":
    main()
