"""One policy for every budget, on its own network and on another one, against a search of its own for each budget.

python benchmarks/policies.py --data DIR --out DIR    (an hour and more; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. For each of two networks one agent is trained on budgets drawn
from the whole range; then it is asked for a plan for every budget, and so is the other network's. Neither evaluates a
candidate for that. *Its loss model alone* is its own policy's plan without the policy's corrections: what its training
taught the loss model. A search is an agent trained for the one budget alone, with as many candidates as the policy's
whole training had. All plans are repaired alike and evaluated on the same test images. Mean ± standard error over the
seeds; rules have one row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import cifar_config, compared, header, mean, table, trained

import secateur
from secateur.agents.policy import Policy, policy_path
from secateur.pruners.loss_model import best_steps
from secateur.pruners.plan import PLAN_NAME

RULES = ["uniform", "threshold", "knapsack"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depths", type=int, nargs=2, default=[20, 56])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    wide = f"agent.budgets=[{min(args.budgets)},{max(args.budgets)}]"
    policies = {
        depth: [
            trained(config(args, depth, float(np.median(args.budgets)), wide), seed, args.out / f"any{depth}-{seed}")
            for seed in range(args.seeds)
        ]
        for depth in args.depths
    }
    for depth, other in zip(args.depths, reversed(args.depths), strict=True):
        lines = [line(args, depth, budget, policies[depth], policies[other]) for budget in args.budgets]
        for figure, what in enumerate(("top-1 on the test images", "distance of the logits on the search images")):
            learned = [f"ResNet-{other}'s policy", "its own policy", "its loss model alone", "a search of its own"]
            rows = [[f"{100 * b:g} %", *found[figure]] for b, found in zip(args.budgets, lines, strict=True)]
            print(f"\nResNet-{depth}, {what}\n\n{table(['FLOPs', *RULES, *learned], rows)}", flush=True)


def config(args: argparse.Namespace, depth: int, budget: float, *more: str) -> secateur.Config:
    options = (f"budget.flops={budget}", f"agent.episodes={args.candidates}", "threads=1", *args.overrides, *more)
    return cifar_config(depth, args.data, *options)


def line(
    args: argparse.Namespace, depth: int, budget: float, own: list[Path], other: list[Path]
) -> tuple[list[str], list[str]]:
    """The cells of one budget: test accuracies, and distances."""
    settings, folder = config(args, depth, budget), args.out / f"resnet{depth}-{budget:g}"
    asked = [
        proposed(run, settings, budget, folder / f"{name}-{seed}")
        for name, runs in (("other", other), ("own", own))
        for seed, run in enumerate(runs)
    ]
    asked += [modelled(run, settings, folder / f"model-{seed}") for seed, run in enumerate(own)]
    searched = [trained(settings, seed, folder / f"ddpg-{seed}") for seed in range(args.seeds)]
    rows = compared([*asked, *searched], settings, folder / "compare", against=RULES)["rows"]
    learned, rules = rows[: 4 * args.seeds], {row["allocator"]: row for row in rows[4 * args.seeds :]}
    groups = [[rules[name]] for name in RULES] + [learned[i * args.seeds : (i + 1) * args.seeds] for i in range(4)]
    tests = [mean([row["test_accuracy"] for row in group], 2) for group in groups]
    return tests, [mean([row["reconstruction_loss"] for row in group], 4) for group in groups]


def proposed(run: Path, settings: secateur.Config, budget: float, folder: Path) -> Path:
    """The folder of a policy's plan; nothing is evaluated."""
    if not (folder / PLAN_NAME).is_file():
        secateur.plan(run, settings, flops=budget, out=folder)
    return folder


def modelled(run: Path, settings: secateur.Config, folder: Path) -> Path:
    """The folder of the plan of a policy's loss model; nothing is evaluated."""
    if not (folder / PLAN_NAME).is_file():
        session = secateur.Session(settings)
        policy = Policy.load(policy_path(run))
        losses = replace(policy.began(session.context, session.budget), factors=policy.factors)
        kept = best_steps(session.budget, losses.gains(session.budget))
        plan = session.plan_of(kept, allocator="loss model", seed=settings.seed, candidates=0)
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / PLAN_NAME)
    return folder


if __name__ == "__main__":
    main()
