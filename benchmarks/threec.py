"""3C (He, Zhang, Sun, ICCV 2017): layers in two spatial factors, those in two again, then channels; one of them, all.

python benchmarks/threec.py --data DIR --out DIR    (half an hour on one thread; what is measured is not measured again)

`--data DIR` holds `cifar10/` and `weights/`. Every network keeps `--kept` of the FLOPs. *3C* is three plans, each for
the network that the one before leaves: `lowrank` with `factors: spatial`, `lowrank` with `factors: channel` of the k×1
and 1×k layers that this made, `channels`. Its budget is split evenly: each of three leaves the cube root. That split is
ours, the paper's exact shares are not known to us. Of two plans the first one, spatial, leaves a part of its own
(`--spatial`). All of these are by `knapsack`. `[lowrank, channels]` is one search over both, by `knapsack` and the best
plan of an agent's search (`--episodes`, none with 0); its split is what either part of the plan would leave alone. All
are repaired in sequence, none is trained. Behind a top-1 on the test images stands what it is over that of channels
alone, with the standard error of the difference on the same images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from common import cifar_config, header, table, trained
from weights import Hits, cell, hits_of

from secateur import Images, RatioPlan, Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Config, Repair
from secateur.networks.copying import copied
from secateur.pruners import Kept
from secateur.reports.progress import RichReporter

REPAIR = Repair(guard=False)
SPATIAL, CHANNEL = ("method=lowrank", "layers.factors=spatial"), ("method=lowrank", "layers.factors=channel")
CHANNELS = ("method=channels",)
Found = tuple[Hits, float, str]  # which answers are right, the part of the FLOPs kept, what each step leaves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--kept", type=float, default=0.25, help="part of the FLOPs")
    parser.add_argument("--spatial", type=float, nargs="+", default=[0.5, 0.35], help="what the first of two leaves")
    parser.add_argument("--episodes", type=int, default=20, help="of the agent's search; 0 leaves it out")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def config(*options: str) -> Config:
        own = (f"budget.flops={args.kept!r}", "threads=1", f"agent.episodes={args.episodes or 1}", "agent.rerank=3")
        return cifar_config(args.depth, args.data, *own, *options)

    folder, even = args.out / f"{args.depth}-{args.kept:g}", args.kept ** (1 / 3)
    chains = {
        "channels": [(CHANNELS, args.kept)],
        "spatial": [(SPATIAL, args.kept)],
        "channel": [(CHANNEL, args.kept)],
        **{f"spatial, channels {part:g}": [(SPATIAL, part), (CHANNELS, args.kept)] for part in args.spatial},
        "3C": [(SPATIAL, even), (CHANNEL, even**2), (CHANNELS, args.kept)],
    }
    dense = Session(config(), reporter=RichReporter())
    images = Images(dense.calibration, dense.search, dense.test)
    found = {
        name: chained(dense.model, images, [(config(*how), part) for how, part in steps], folder / f"{name}.json")
        for name, steps in chains.items()
    }
    session = Session(config("method=[lowrank, channels]", "layers.factors=spatial"), reporter=RichReporter())
    found["[spatial, channels], knapsack"] = measured(session, ruled(session), folder / "knapsack.json")
    if args.episodes:
        run = folder / f"ddpg-{args.episodes}"
        plan = RatioPlan.load(trained(session.config, 0, run))
        found["[spatial, channels], ddpg"] = measured(session, plan.kept, folder / f"{run.name}.json")
    base, _, _ = found["channels"]
    rows = [
        [name.rstrip(" .0123456789"), split, f"{100 * part:.1f}", cell([hits], base, hits is base)]
        for name, (hits, part, split) in found.items()
    ]
    print(header())
    print(table([f"ResNet-{args.depth}", "each leaves", "FLOPs, %", "top-1"], rows))


def ruled(session: Session) -> Kept:
    """The rule's plan."""
    return get_allocator("knapsack", session.config.method).allocate(SearchProblem(session.budget, session.context))


def chained(model: torch.nn.Module, images: Images, steps: Sequence[tuple[Config, float]], path: Path) -> Found:
    """What plans leave that follow each other.

    Args:
        model: the dense network.
        images: of all.
        steps: of each its config, and the part of the dense network's FLOPs that there may be behind it.
        path: of what is measured.
    """
    left, each = 1.0, []
    network: Callable[[], torch.nn.Module] = partial(copied, model)
    for config, most in steps:
        session = Session(config, model=network(), images=images, reporter=RichReporter())
        session = session.beside(overrides=[f"budget.flops={most / left!r}"])
        kept = ruled(session)
        reached = session.structure.fraction("flops", kept)
        left, each = left * reached, [*each, f"{reached:.2f}"]
        session.reporter.say(f"{path.stem}: {each[-1]} of the FLOPs left by {session.config.method}")
        network = partial(session.compressor, kept, REPAIR)
    return hits_of(session, kept, path, network), left, " · ".join(each)


def measured(session: Session, kept: Kept, path: Path) -> Found:
    """What a plan of two methods leaves, and what it would if it were of one of them."""
    structure = session.structure
    alone = []
    for method in ("lowrank", "channels"):
        own = structure.units.copy()
        for i, layer in enumerate(structure.layers):
            if layer.name.endswith(f".{method}"):
                own[i] = kept[i]
        alone.append(f"{structure.fraction('flops', own):.2f}")
    hits = hits_of(session, kept, path, lambda: session.compressor(kept, REPAIR))
    return hits, structure.fraction("flops", kept), f"{' and '.join(alone)} alone"


if __name__ == "__main__":
    main()
