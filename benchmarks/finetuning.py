"""Pruned networks trained: whether allocations keep their order, and in which order to cut and train.

python benchmarks/finetuning.py --data DIR --out DIR [--schedules]    (hours; what is there is not run again)

`--data DIR` holds `cifar10/` and `weights/`. Without `--schedules`: rules and searches at every budget, one-shot and
repaired, then after the same epochs on the same images, learning from the dense network and from the labels alone.
Plans of finished searches may be given (`--plans`, run folders or files); an allocator that has one at a budget is not
searched again there. With `--schedules`: a dense network is trained here, so that there are earlier weights to go back
to, and knapsack's plan of it at the last budget is trained by every schedule; then its weights, of which 5 % stay.

All of it is `secateur.compare`: a comparison that was killed goes on at its epoch. Differences from the best row are
paired on the same test images, with their standard error. Costs are images that went through networks: by searches, by
trainings, and by the dense network that is learnt from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import cifar_config, compared, header, table, trained
from weights import of_all

from secateur import RatioPlan, Session
from secateur.networks.inference import accuracy
from secateur.pruners.plan import plan_path
from secateur.reports.progress import RichReporter

RULES = ("uniform", "threshold", "knapsack")
SCHEDULES = {  # method → those its plan is trained by
    "channels": ("one_shot", "iterative", "rewind", "scratch_e", "scratch_b"),
    "weights": ("one_shot", "gradual", "iterative", "rewind"),
}
TEACHERS = {"distilled": 0.5, "labels": 0.0}  # folder → weight of the dense network's outputs in the loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25], help="of the FLOPs")
    parser.add_argument("--images", type=int, help="to train on; all, if not given")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="of searches, and of trainings")
    parser.add_argument("--candidates", type=int, default=60, help="of every search")
    parser.add_argument("--plans", type=Path, nargs="+", default=[], help="of finished searches")
    parser.add_argument("--schedules", action="store_true", help="compare schedules, not allocations")
    parser.add_argument("--methods", nargs="+", default=list(SCHEDULES), choices=SCHEDULES, help="with --schedules")
    known = sorted({name for names in SCHEDULES.values() for name in names})
    parser.add_argument("--only", nargs="+", choices=known, help="with --schedules: these of them")
    parser.add_argument("--pretrain", type=int, default=20, help="with --schedules: epochs of the dense network")
    parser.add_argument("--kept", type=float, default=0.05, help="with --schedules: fraction of the prunable weights")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header(), flush=True)
    for lines in schedules(args) if args.schedules else allocations(args):
        print("\n" + lines, flush=True)


def options(args: argparse.Namespace, *more: str) -> tuple[str, ...]:
    """The config's, for every run."""
    images = [] if args.images is None else [f"data.train={args.images}"]
    episodes = (f"agent.episodes={args.candidates}", f"compare.candidates={args.candidates}")
    return ("threads=1", "finetune.channels_last=true", *episodes, *images, *more, *args.overrides)


def allocations(args: argparse.Namespace) -> Iterator[str]:
    """A table a budget."""
    dense = Session(cifar_config(args.depth, args.data, *options(args)), reporter=RichReporter())
    for budget in args.budgets:
        folder = args.out / f"resnet{args.depth}-{budget:g}"
        session = dense.beside(overrides=[f"budget.flops={budget}"])
        given = {path: RatioPlan.load(path) for path in map(plan_path, args.plans)}
        plans = {path: plan.provenance.allocator for path, plan in given.items() if plan.budget.fraction == budget}
        if "ddpg" not in plans.values():
            runs = [trained(session.config, seed, folder / f"ddpg-{seed}") for seed in range(args.seeds)]
            plans |= dict.fromkeys(map(plan_path, runs), "ddpg")
        against = [name for name in (*RULES, "random") if name not in plans.values()]
        found: dict[str, dict[str, Any]] = {}
        for name, weight in TEACHERS.items():
            taught = session.beside(overrides=[f"finetune.distill.weight={weight}"])
            how = {"against": against, "finetune": args.epochs, "seeds": range(args.seeds)}
            found[name] = compared(list(plans), taught, folder / name, **how)
            plans = {folder / name / row["plan"]: row["allocator"] for row in found[name]["rows"]}
            against = []  # all are plans by now
        yield about_allocations(f"ResNet-{args.depth}, {100 * budget:g} % of the FLOPs", found)


def about_allocations(title: str, found: dict[str, dict[str, Any]]) -> str:
    """A line an allocator, in the order of one-shot accuracy; below, whether that order is kept."""
    shot: dict[str, list[float]] = {}
    for row in found["distilled"]["rows"]:
        shot.setdefault(row["allocator"], []).append(row["test_accuracy"])
    after = {name: {row["allocator"]: row for row in tree["trained_summary"]} for name, tree in found.items()}
    lines = []
    for name in sorted(shot, key=lambda name: -mean(shot[name])):
        cells = [cell for of in TEACHERS for cell in reached(after[of][name])]
        search = after["distilled"][name]["search_images"]
        lines.append([name, f"{mean(shot[name]):.2f}", *cells, f"{search / 1000:.0f}"])
    head = [title, "repaired", *(cell for name in TEACHERS for cell in (name, "behind the best", "1,000 images", "s"))]
    told = [
        f"{name}: {tree['trained_verdict']} ({len(tree['trained'])} trainings, {tree['finetune_epochs']} epochs)"
        for name, tree in found.items()
    ]
    return "\n".join([table([*head, "search, 1,000 images"], lines), "", *told])


def schedules(args: argparse.Namespace) -> Iterator[str]:
    """A table of channels, one of weights; of a dense network that is trained first."""
    pretrain = [f"network.pretrain.{key}" for key in (f"epochs={args.pretrain}", "learning_rate=0.1", "keep_epoch=1")]
    trained_here = options(args, "network.weights=null", *pretrain, "network.pretrain.channels_last=true")
    session = Session(cifar_config(args.depth, args.data, *trained_here), reporter=RichReporter())
    for method in args.methods:
        if method == "channels":
            cut = session.beside(overrides=[f"budget.flops={args.budgets[-1]}"])
            of = f"channels, {100 * args.budgets[-1]:g} % of the FLOPs"
        else:
            cut = session.beside(overrides=["method=weights", "budget.flops=null", "budget.params=1"])
            cut = cut.beside(overrides=[f"budget.params={of_all(cut, args.kept)!r}"])
            of = f"{100 * args.kept:g} % of the weights"
        yield about_schedules(args, cut, f"ResNet-{args.depth}, {of}")


def about_schedules(args: argparse.Namespace, session: Session, title: str) -> str:
    """A line a schedule, the best first."""
    method = session.config.method
    names = [name for name in SCHEDULES[method] if args.only is None or name in args.only]
    folder = args.out / f"resnet{args.depth}-{method}"
    how = {"against": ["knapsack"], "finetune": args.epochs, "seeds": range(args.seeds), "schedules": names}
    tree = compared([], session, folder, **how)
    lines = [[row["schedule"], *reached(row)] for row in tree["trained_summary"]]
    assert session.test is not None
    dense = accuracy(session.model, session.test, session.objective)
    told = f"dense {dense:.2f}, knapsack's plan repaired {tree['rows'][0]['test_accuracy']:.2f}"
    head = [title, f"after {args.epochs} epochs", "behind the best", "1,000 images", "s"]
    return "\n".join([table(head, lines), "", told, "", str(tree["trained_verdict"])])


def reached(row: dict[str, Any]) -> list[str]:
    """Accuracy with its spread over seeds, distance from the best, cost of one training: images and seconds."""
    spread = f" ({row['test_spread']:.2f})" if row["trainings"] > 1 else ""
    behind = f"{row['behind']:.2f} ± {row['behind_standard_error']:.2f}" if "behind" in row else "–"
    images = row["images"] + row["dense_images"]
    return [f"{row['test_accuracy']:.2f}{spread}", behind, f"{images / 1000:.0f}", f"{row['seconds']:.0f}"]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
