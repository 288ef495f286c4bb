"""Deep Compression's chain: few weights, few bits of those, one packed file; bytes and accuracy after each stage.

python benchmarks/packed.py --data DIR --out DIR    (minutes; a stage that is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. The first stage keeps a fraction (`--kept`) of the weights, chosen over
the network by `knapsack` and repaired by least squares; the second gives what is left `--bits` bits, zeros stay zero
(`method: bits`, GPTQ-like, fitted): on grids of a scale an output, or on values that a tensor shares (`--grid`). With
`--channels` channels go first, by `knapsack`, until a fraction of the parameters is left, of which the others are
fractions. `--epochs` are of the three stages: channels, weights, bits. `packed` is the size of the file that `secateur
export --format packed` writes, all of it: batch norms, biases, recipe and head. Behind it stands how many times smaller
it is than the dense network's numbers at 4 bytes each. `--car LAYER` takes half of one convolution's channels first,
those whose removal costs the least accuracy (Abbasi-Asl & Yu 2017, who reach a factor of 42 so with a convolution of
AlexNet), and says how small that convolution's own weights get: what it holds of them in the dense network at 4 bytes
each, over a packed file of what is left of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from common import cifar_config, header, table
from torch import nn

import secateur
from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.pruners import Kept
from secateur.reports.progress import RichReporter
from secateur.storage.packed import pack

WHOLE = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--kept", type=float, nargs="+", default=[WHOLE, 0.5, 0.35], help="fractions of the weights")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--grid", nargs="+", choices=["row", "shared"], default=["row"], help="what few bits stand for")
    parser.add_argument("--car", metavar="LAYER", help="loses half of its channels first")
    parser.add_argument("--channels", type=float, default=WHOLE, help="fraction of the parameters that channels leave")
    parser.add_argument("--epochs", type=int, nargs=3, default=[0, 0, 0], help="of fine-tuning, behind each stage")
    parser.add_argument("--fold-norms", action="store_true", help="running statistics into the norms' weights")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    head = ["weights kept", "top-1", "grid", "bits", "top-1", "packed, bytes", "times smaller"]
    head += [f"{args.car}, bytes", "times smaller"] if args.car else []
    print(table(head, [row for kept in args.kept for row in rows(args, kept)]))


def rows(args: argparse.Namespace, kept: float) -> list[list[str]]:
    """One for every grid and number of bits."""
    config = cifar_config(args.depth, args.data, "threads=1", *args.overrides)
    dense = Session(config, reporter=RichReporter())
    model: nn.Module = dense.model
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    shown, out = "–", args.out
    if args.car:
        out = args.out / f"car-{args.car}"
        session = dense.beside(overrides=["method=channels", "criterion=car", "budget.flops=1"])
        halved = session.structure.units.copy()
        halved[session.structure.index(args.car)] //= 2
        shown, model = stage(session, halved, out / "channels", args.epochs[0], model)
        print(f"{args.car} without half of its channels: {shown}")
    elif args.channels < WHOLE:
        out = args.out / f"channels-{args.channels:g}"
        session = dense.beside(overrides=["method=channels", f"budget.params={args.channels!r}"])
        shown, model = stage(session, "knapsack", out / "channels", args.epochs[0], model)
        print(f"{100 * args.channels:g} % of the parameters left by channels: {shown}")
    if kept < WHOLE:
        session = Session(
            config, model=model, overrides=["method=weights", f"budget.params={kept!r}"], reporter=RichReporter()
        )
        shown, model = stage(session, "knapsack", out / f"kept-{kept:g}", args.epochs[1], model)
    found = []
    for grid, bits in itertools.product(args.grid, args.bits):
        options = ["method=bits", f"layers.grid={grid}", "budget.size=1"]
        coding = Session(config, model=model, overrides=options, reporter=RichReporter())
        folder = out / f"kept-{kept:g}-{grid}-{bits}"
        plan = np.full(len(coding.structure.layers), bits, dtype=np.int64)
        after, small = stage(coding, plan, folder, args.epochs[2], model)
        packed = folder / ("folded" if args.fold_norms else "packed")
        if not packed.exists():
            secateur.export(folder, coding, format="packed", fold_norms=args.fold_norms, out=packed)
        size = json.loads((packed / "export.json").read_text())["packing"]["bytes"]
        line = [f"{100 * kept:g} %", shown, grid, str(bits), after, f"{size:,}", f"{4 * numbers / size:.1f}"]
        found.append([*line, *(alone(args.car, dense.model, small, folder / "layer.packed") if args.car else [])])
    return found


def alone(layer: str, dense: nn.Module, small: nn.Module, path: Path) -> list[str]:
    """Bytes of a layer's weights in a file of their own, all of it, and how many times smaller that is."""
    before, after = (model.state_dict()[f"{layer}.weight"] for model in (dense, small))
    pack(path, {"weight": after}, {})
    size = path.stat().st_size
    return [f"{size:,}", f"{4 * before.numel() / size:.1f}"]


def stage(session: Session, how: str | Kept, folder: Path, epochs: int, model: nn.Module) -> tuple[str, nn.Module]:
    """Top-1 and the network of a stage, made of a model: by a rule, or by a plan; applied already, or now."""
    if not (folder / "summary.json").exists():
        name = how if isinstance(how, str) else "uniform"
        kept = how
        if isinstance(how, str):
            kept = get_allocator(how, session.config.method).allocate(SearchProblem(session.budget, session.context))
        plan = session.plan_of(kept, allocator=name, seed=0, candidates=0)
        secateur.apply(plan, session, finetune=epochs, out=folder)
    summary = json.loads((folder / "summary.json").read_text())
    return f"{summary['pruned']['test_accuracy']:.2f}", secateur.load(folder, model)


if __name__ == "__main__":
    main()
