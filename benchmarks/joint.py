"""Channels and bits in one search, against channels first and bits of what is left, at the same bytes.

python benchmarks/joint.py --data DIR --out DIR    (an hour on one thread; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. Every plan spends a part (`--size`) of the weights' bytes. *Joint* is
`method: [channels, bits]`: by `knapsack`, and the best plan of an agent's search (`--episodes`, none with 0). *In
sequence* is `knapsack` twice: channels until a part (`--channels`) of the parameters is left, repaired, then bits of
that network; *bits alone* keeps all channels. All are repaired in sequence, none is trained. Behind a top-1 on the test
images stands what it is over the joint `knapsack`'s, with the standard error of the difference on the same images.
A network that two bits do not bring down to the bytes has no line. Below the table: rank correlation (Spearman) of what
is predicted and what is measured of random joint plans (`--plans`, on the middle budget), distances of the outputs from
the dense network's on the search images.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path

import torch
from common import cifar_config, header, table, trained
from scipy.stats import spearmanr
from weights import Hits, cell, hits_of

from secateur import Images, RatioPlan, Session
from secateur.agents import SearchProblem, get_allocator
from secateur.agents.allocators.searches import random_plans
from secateur.configs import Config, Repair
from secateur.pruners import Kept, LossModel, PlanError
from secateur.reports.progress import RichReporter
from secateur.storage.files import write_json

REPAIR = Repair(guard=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--size", type=float, nargs="+", default=[0.05, 0.08, 0.12], help="parts of the bytes")
    parser.add_argument("--channels", type=float, nargs="+", default=[0.75, 0.5], help="parts of the parameters")
    parser.add_argument("--episodes", type=int, default=30, help="of the agent's search; 0 leaves it out")
    parser.add_argument("--plans", type=int, default=50, help="random ones; 0 leaves them out")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def config(method: str, budget: str) -> Config:
        options = (f"method={method}", f"budget.{budget}", "threads=1", f"agent.episodes={args.episodes or 1}")
        return cifar_config(args.depth, args.data, *options, "agent.rerank=3")

    joint = Session(config("[channels, bits]", f"size={args.size[0]!r}"), reporter=RichReporter())
    images = Images(joint.calibration, joint.search, joint.test)
    correlation = ""
    if args.plans:
        middle = joint.beside(overrides=[f"budget.size={args.size[len(args.size) // 2]!r}"])
        correlation = told(middle, args.plans, args.out / f"{args.depth}-random.json")
    cut = {part: channels(joint, config("channels", f"params={part!r}"), images) for part in args.channels}
    rows = []
    for size in args.size:
        session, folder = joint.beside(overrides=[f"budget.size={size!r}"]), args.out / f"{args.depth}-{size:g}"
        found = {"joint, knapsack": measured(session, knapsack(session), folder / "knapsack.json")}
        if args.episodes:
            run = folder / f"ddpg-{args.episodes}"
            plan = RatioPlan.load(trained(session.config, 0, run))
            found["joint, ddpg"] = measured(session, plan.kept, folder / f"{run.name}.json")
        most = session.budget.limit
        for part, smaller in {1.0: joint.model, **cut}.items():
            second = Session(config("bits", "size=1"), model=smaller, images=images, reporter=RichReporter())
            second = second.beside(
                overrides=[f"budget.size={most / second.structure.cost('size', second.structure.units)!r}"]
            )
            name = "bits alone" if part == 1.0 else f"in sequence, {100 * part:g} % of the parameters"
            with suppress(PlanError):  # two bits of all that is left are more than the budget
                found[name] = measured(second, knapsack(second), folder / f"bits-{part:g}.json")
        base, _ = found["joint, knapsack"]
        rows += [
            [f"{100 * size:g} %", name, str(cost), cell([hits], base, hits is base)]
            for name, (hits, cost) in found.items()
        ]
    print(header())
    print(table(["bytes", f"ResNet-{args.depth}", "of them", "top-1"], rows))
    print(f"\n{correlation}")


def knapsack(session: Session) -> Kept:
    return get_allocator("knapsack", session.config.method).allocate(SearchProblem(session.budget, session.context))


def channels(joint: Session, config: Config, images: Images) -> torch.nn.Module:
    """The network that the first plan of a sequence leaves."""
    session = Session(config, model=joint.model, images=images, reporter=RichReporter())
    return session.compressor(knapsack(session), REPAIR)


def measured(session: Session, kept: Kept, path: Path) -> tuple[Hits, int]:
    """Which answers are right, and the bytes."""
    hits = hits_of(session, kept, path, lambda: session.compressor(kept, REPAIR))
    return hits, session.structure.cost("size", kept)


def told(session: Session, count: int, path: Path) -> str:
    """How well the distances of random plans are predicted."""
    plans = random_plans(SearchProblem(session.budget, session.context), count)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for kept in plans[len(known) :]:
        known.append(session.evaluator.evaluate(kept).reconstruction_loss)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    predicted = LossModel.of(session.context).predict(plans)
    return f"Spearman of {count} random joint plans: {spearmanr(predicted, known[:count]).statistic:.3f}"


if __name__ == "__main__":
    main()
