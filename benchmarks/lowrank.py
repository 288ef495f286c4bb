"""Layers in two factors: which rule or search sets the ranks, which factors are taken, and what a repair makes of them.

python benchmarks/lowrank.py --data DIR --out DIR    (hours with ddpg; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. A plan keeps a fraction (`--kept`) of the FLOPs. The factors are `data`,
those that come nearest to the outputs of a layer on the calibration images, or `svd`, those nearest to its weights;
both for the same ranks. `ddpg` is the best plan of an agent's search (none with `--episodes 0`). Top-1 on the same test
images, with nothing repaired and with the sequential repair of `apply`. No fine-tuning.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from common import cifar_config, header, table, trained

from secateur import RatioPlan, Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Repair
from secateur.networks.inference import accuracy
from secateur.reports.progress import RichReporter
from secateur.storage.files import write_json

CRITERIA = ("svd", "data")
REPAIRS = {"unrepaired": Repair(kind="none"), "repaired": Repair()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--kept", type=float, nargs="+", default=[0.5], help="fractions of the FLOPs")
    parser.add_argument("--factors", nargs="+", default=["channel", "spatial"])
    parser.add_argument("--allocators", nargs="+", default=["uniform", "knapsack"], help="rules")
    parser.add_argument("--episodes", type=int, default=30, help="of the agent's search; 0 leaves it out")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    for depth in args.depths:
        for kept in args.kept:
            rows = []
            for factors in args.factors:
                ours = ("method=lowrank", f"layers.factors={factors}", f"budget.flops={kept}", "threads=1")
                options = (*ours, f"agent.episodes={max(1, args.episodes)}", *args.overrides)
                session = Session(cifar_config(depth, args.data, *options), reporter=RichReporter())
                folder = args.out / f"resnet{depth}-{factors}-{kept:g}"
                rows += lines(session, folder, factors, args)
            head = [f"ResNet-{depth}, {100 * kept:g} % of the FLOPs", "ranks by"]
            head += [f"{criterion}, {repair}" for criterion in CRITERIA for repair in REPAIRS]
            print("\n" + table(head, rows), flush=True)


def lines(session: Session, folder: Path, factors: str, args: argparse.Namespace) -> list[list[str]]:
    """A line a rule, and one of the agent's."""
    plans = {name: ruled(session, name) for name in args.allocators}
    if args.episodes:
        plans["ddpg"] = RatioPlan.load(trained(session.config, 0, folder / "ddpg"))
    return [
        [factors, name, *(measured(session, plan, c, r, folder / name) for c in CRITERIA for r in REPAIRS)]
        for name, plan in plans.items()
    ]


def ruled(session: Session, name: str) -> RatioPlan:
    """A rule's plan."""
    kept = get_allocator(name, "lowrank").allocate(SearchProblem(session.budget, session.context))
    return session.plan_of(kept, allocator=name, seed=0, candidates=0)


def measured(session: Session, plan: RatioPlan, criterion: str, repair: str, folder: Path) -> str:
    """Top-1 on the test images; measured, and kept, as far as it is not there yet."""
    assert session.test is not None
    path = folder / f"{criterion}-{repair}.json"
    if not path.is_file():
        other = session.beside(overrides=[f"criterion={criterion}"])
        found = accuracy(other.compressor(plan.kept, REPAIRS[repair]), session.test)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"kept": plan.kept.tolist(), "top1": found})
        session.reporter.say(f"{folder.name}, {path.stem}: {found:.2f} %")
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree["kept"] != plan.kept.tolist():
        raise ValueError(f"{path} is of another plan: give another --out, or delete it")
    return f"{tree['top1']:.2f}"


if __name__ == "__main__":
    main()
