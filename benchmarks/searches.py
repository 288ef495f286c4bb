"""The agent against rules and other searches: equal candidates, the same images, several seeds.

python benchmarks/searches.py --data DIR --out DIR    (an hour and more; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. Every seed's training is a run folder below `--out`, every comparison,
too; a benchmark that was interrupted goes on where it stopped. All plans are repaired in the end alike and evaluated
on the same test images; a search's best few are evaluated again by the final repair on the search images before one is
chosen. Mean ± standard error over the seeds; what a row is over the agent is paired: the same test images, the same
seed. With `--set agent.algorithm=td3` that is another agent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar_config, compared, error, header, mean, table, trained

RULES = ["uniform", "shallow", "deep", "erk", "lamp", "global_l1", "global_taylor", "threshold", "knapsack"]
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
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    for depth in args.depths:
        for budget in args.budgets:
            rows = compare(args, depth, budget)
            head = ["allocator", "seeds", "search", "distance", "test", f"over {rows[0]['allocator']}"]
            print(f"\nResNet-{depth}, {100 * budget:g} % of the FLOPs, {args.candidates} candidates\n")
            print(table(head, summarize(rows)), flush=True)


def compare(args: argparse.Namespace, depth: int, budget: float) -> list[dict[str, Any]]:
    """The rows of one comparison, run as far as it is not there yet."""
    options = (f"budget.flops={budget}", f"agent.episodes={args.candidates}", "threads=1", *args.overrides)
    config = cifar_config(depth, args.data, *options)
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
