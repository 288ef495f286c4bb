"""The agent against rules and other searches: equal candidates, the same images, several seeds.

python benchmarks/searches.py --data DIR --out DIR    (an hour and more; what is there already is not run again)
python benchmarks/searches.py --data DIR --out DIR --starts    (the agent alone, from scratch and warm)

`--data DIR` holds `cifar10/` and `weights/`. Every seed's training is a run folder below `--out`, every comparison,
too; a benchmark that was interrupted goes on where it stopped. All plans are repaired in the end alike and evaluated
on the same test images; a search's best few are evaluated again by the final repair on the search images before one is
chosen. Mean ± standard error over the seeds; what a row is over the agent is paired: the same test images, the same
seed. With `--set agent.algorithm=td3` that is another agent.

With `--starts` every seed searches twice, its loss model as predicted and as other networks have corrected it
(`agent.warm_start`), and what counts is after how many candidates the second has the distance that the first ends with:
of the candidates' quick repair on the search images, the smallest so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar_config, compared, error, header, mean, table, trained

import secateur
from secateur.agents.log import LOG_NAME, read_episodes

RULES = ["uniform", "shallow", "deep", "erk", "lamp", "global_l1", "global_taylor", "threshold", "knapsack"]
STARTS = [
    "seed",
    "first candidate: from scratch",
    "warm",
    "best of all: from scratch",
    "warm",
    "that from scratch was found after",
    "as near were, warm, after",
]
SEARCHES = ["random", "evolution", "hill_climb", "adaptive_knapsack"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--against", nargs="+", default=[*RULES, *SEARCHES])
    parser.add_argument("--starts", action="store_true", help="compare how a search may begin, and nothing else")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    for depth in args.depths:
        for budget in args.budgets:
            if args.starts:
                print(f"\nResNet-{depth}, {100 * budget:g} % of the FLOPs, {args.candidates} candidates\n")
                print(table(STARTS, [started(args, depth, budget, seed) for seed in range(args.seeds)]), flush=True)
                continue
            rows = compare(args, depth, budget)
            head = ["allocator", "seeds", "search", "distance", "test", f"over {rows[0]['allocator']}"]
            print(f"\nResNet-{depth}, {100 * budget:g} % of the FLOPs, {args.candidates} candidates\n")
            print(table(head, summarize(rows)), flush=True)


def agent_config(args: argparse.Namespace, depth: int, budget: float, *more: str) -> secateur.Config:
    options = (f"budget.flops={budget}", f"agent.episodes={args.candidates}", "threads=1", *more, *args.overrides)
    return cifar_config(depth, args.data, *options)


def compare(args: argparse.Namespace, depth: int, budget: float) -> list[dict[str, Any]]:
    """The rows of one comparison, run as far as it is not there yet."""
    config = agent_config(args, depth, budget)
    folder = args.out / f"resnet{depth}-{budget:g}"
    found = compared(
        [trained(config, seed, folder / f"ddpg-{seed}") for seed in range(args.seeds)],
        config,
        folder / "compare",
        against=args.against,
        candidates=args.candidates,
        seeds=range(args.seeds),
    )
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def started(args: argparse.Namespace, depth: int, budget: float, seed: int) -> list[str]:
    """A line of `STARTS`."""
    cold, warm = (
        np.minimum.accumulate([line["reconstruction_loss"] for line in read_episodes(run / LOG_NAME)])
        for begun in ("false", "true")
        for run in [
            trained(
                agent_config(args, depth, budget, f"agent.warm_start={begun}"),
                seed,
                args.out / f"resnet{depth}-{budget:g}" / f"warm-{begun}-{seed}",
            )
        ]
    )
    there, later = (np.flatnonzero(found <= cold[-1]) for found in (cold, warm))
    reached = str(later[0] + 1) if len(later) else f"> {args.candidates}"
    figures = [f"{found:.4f}" for found in (cold[0], warm[0], cold[-1], warm[-1])]
    return [str(seed), *figures, str(there[0] + 1), reached]


def summarize(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line an allocator, in the order of their test accuracy; the agent's rows are the first ones."""
    agent = rows[0]["allocator"]
    tests: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tests.setdefault(row["allocator"], []).append(row)
    learned = np.array([row["test_accuracy"] for row in tests[agent]])
    lines = []
    for name, found in sorted(tests.items(), key=lambda item: -np.mean([r["test_accuracy"] for r in item[1]])):
        test = np.array([row["test_accuracy"] for row in found])
        gain = test - (learned if len(test) == len(learned) else learned.mean())
        spread = gain if len(test) == len(learned) else learned  # a rule has one row, the agent's rows vary
        lines.append(
            [
                name,
                str(len(found)),
                mean([row["search_accuracy"] for row in found], 2),
                mean([row["reconstruction_loss"] for row in found], 4),
                mean(list(test), 2),
                "" if name == agent else f"{gain.mean():+.2f} ± {error(list(spread)):.2f}",
            ]
        )
    return lines


if __name__ == "__main__":
    main()
