"""Single weights pruned: which rule or search says how many of every tensor stay, and what a repair makes of them.

python benchmarks/weights.py --data DIR --out DIR    (hours; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. A plan keeps a fraction (`--kept`) of all weights of convolutions and
linear layers, counted over the whole network; magnitude says which. `ddpg` is the best plan of an agent's search, one
a seed (none with `--seeds 0`). Every plan is measured three times on the same test images: with nothing repaired, with
batch norms adapted to 2,000 calibration images, and with least squares on the weights that stay, sequentially, as
`apply` does. No fine-tuning. Behind a top-1 stands what it is over the uniform plan's of the same repair, with the
standard error of that difference on the same images (over seeds, of their mean); several seeds have their standard
error, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import cifar_config, error, header, table, trained
from numpy.typing import NDArray
from torch import nn

from secateur import RatioPlan, Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Config, Repair
from secateur.networks.inference import Batches, logits
from secateur.pruners import Kept
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.reports.progress import RichReporter
from secateur.storage.files import write_json

ADAPTING = 2000  # calibration images
REPAIRS = ("nothing repaired", "adaptive BN", "least squares")
RULES = ["uniform", "global_magnitude", "erk", "lamp", "knapsack"]

Hits = NDArray[np.float64]  # (test images,) 1 where the answer is right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--kept", type=float, nargs="+", default=[0.2, 0.1], help="fractions of the prunable weights")
    parser.add_argument("--allocators", nargs="+", default=RULES, help="rules; uniform is always among them")
    parser.add_argument("--episodes", type=int, default=100, help="of every search of the agent")
    parser.add_argument("--seeds", type=int, default=3, help="of the agent; 0 leaves it out")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    for depth in args.depths:
        options = ("method=weights", f"agent.episodes={args.episodes}", "threads=1", *args.overrides)
        dense = Session(cifar_config(depth, args.data, *options, "budget.params=1"), reporter=RichReporter())
        for kept in args.kept:
            session = dense.beside(overrides=[f"budget.params={of_all(dense, kept)!r}"])
            head = [f"ResNet-{depth}, {100 * kept:g} % of the weights", "seeds", *REPAIRS]
            print("\n" + table(head, rows(session, args.out / f"resnet{depth}-{kept:g}", args)), flush=True)


def of_all(session: Session, kept: float) -> float:
    """A fraction of the prunable weights as a fraction of all parameters, biases and batch norms among them."""
    structure = session.structure
    whole, prunable = structure.cost("params", structure.units), int(structure.units.sum())
    return (whole - (1.0 - kept) * prunable) / whole


def rows(session: Session, folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """A line an allocator; the first is the dense network's."""
    assert session.test is not None
    plans = {name: [ruled(session, name, folder)] for name in dict.fromkeys(["uniform", *args.allocators])}
    if args.seeds:
        plans["ddpg"] = [searched(session.config, seed, folder / f"ddpg-{seed}") for seed in range(args.seeds)]
    found = {
        name: {repair: [hits(session, plan, repair, folder) for plan in made] for repair in REPAIRS}
        for name, made in plans.items()
    }
    lines = [["dense", "1", f"{100 * correct(session.model, session.test).mean():.2f}", *[""] * (len(REPAIRS) - 1)]]
    for name, repaired in found.items():
        cells = [cell(repaired[repair], found["uniform"][repair][0], name == "uniform") for repair in REPAIRS]
        lines.append([name, str(len(plans[name])), *cells])
    return lines


def cell(of: list[Hits], uniform: Hits, itself: bool) -> str:
    """Top-1 in per cent, and over the uniform plan's."""
    tops = [100.0 * float(hits.mean()) for hits in of]
    shown = f"{np.mean(tops):.2f}" + (f" ± {error(tops):.2f}" if len(tops) > 1 else "")
    gain = 100.0 * (np.mean(of, axis=0) - uniform)
    return shown if itself else f"{shown} ({gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f})"


def ruled(session: Session, name: str, folder: Path) -> RatioPlan:
    """A rule's plan, made as far as it is not there yet."""
    path = folder / f"{name}.json"
    if not path.is_file():
        kept = get_allocator(name, "weights").allocate(SearchProblem(session.budget, session.context))
        path.parent.mkdir(parents=True, exist_ok=True)
        session.plan_of(kept, allocator=name, seed=0, candidates=0).save(path)
    return RatioPlan.load(path)


def searched(config: Config, seed: int, run: Path) -> RatioPlan:
    """The plan of a training: finished already, gone on with, or begun."""
    return RatioPlan.load(trained(config, seed, run))


def hits(session: Session, plan: RatioPlan, repair: str, folder: Path) -> Hits:
    """Which answers are right of a plan's network."""
    path = folder / "hits" / f"{plan.provenance.allocator}-{plan.provenance.seed} {repair}.json"
    return hits_of(session, plan.kept, path, lambda: repaired(session, plan, repair))


def hits_of(session: Session, kept: Kept, path: Path, network: Callable[[], nn.Module]) -> Hits:
    """Which answers are right of a network that keeps so many units; measured, as far as the file is not there yet."""
    assert session.test is not None
    if not path.is_file():
        right = correct(network(), session.test)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"kept": kept.tolist(), "right": "".join(str(int(hit)) for hit in right)})
        session.reporter.say(f"{path.stem}: {100 * right.mean():.2f} %")
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree["kept"] != kept.tolist() or len(tree["right"]) != sum(len(labels) for _, labels in session.test):
        raise ValueError(f"{path} is of another plan or of other images: give another --out, or delete it")
    return np.array([float(hit) for hit in tree["right"]])


def repaired(session: Session, plan: RatioPlan, repair: str) -> nn.Module:
    if repair == "least squares":
        return session.compressor(plan.kept, Repair())
    model = session.compressor.compress(plan.kept).model
    if repair == "adaptive BN":
        adapt_batchnorm(model, more_images(session))
    return model


def more_images(session: Session) -> Batches:
    """Calibration images for the batch norms; a least-squares repair has the config's own number."""
    data = session.config.data
    assert data is not None
    return session.beside(overrides=[f"data.calibration={max(ADAPTING, data.calibration or 0)}"]).calibration


def correct(model: nn.Module, test: Batches) -> Hits:
    labels = torch.cat([labels for _, labels in test])
    return np.asarray((logits(model, test).argmax(1) == labels).double().numpy())


if __name__ == "__main__":
    main()
