"""Weights of few bits: nearest rounding against GPTQ, and bits chosen by layer against the same bits everywhere.

python benchmarks/bits.py --data DIR --out DIR    (minutes; what is there already is not run again)

`--data DIR` holds `cifar10/` and `weights/`. A plan gives every weight tensor its bits; scales are one an output, and
bytes those of codes, scales and what stays float. Every plan is measured on the same test images four times: rounded by
`nearest` and by `gptq`, with nothing repaired (`gptq` knows the dense network's moments) and fitted sequentially, as
`apply` does; `packed` is the file of the last one. `knapsack` and `ddpg` (a search of `--episodes`, none with 0) spend
the bytes of the uniform plan of `--mean` bits; `--uniform` leaves both out. No training. Behind a top-1 stands what it
is over that uniform plan's, with the standard error of the difference on the same images.

`--grid shared` lays weights on values that a tensor shares. A second table says what the layers' outputs lose with
nothing repaired, 1 − R² by the moments, the mean over layers: `nearest` is Deep Compression's sharing, `solved` has the
same weights share the values that lose least, `columns` is GPTQ on values that stay, and `gptq` is both.

`--inputs 3 4 6 8` rounds inputs, too, each layer's to one of these bits, on the bit operations of `--mean` bits of both
factors everywhere: `knapsack, weights` chooses the weights' bits alone, inputs having `--mean`; the others choose both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import cifar_config, header, table, trained
from weights import Hits, cell, hits_of

from secateur import RatioPlan, Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Repair
from secateur.pruners import Kept
from secateur.pruners.repair.gram import output_error
from secateur.pruners.repair.rounding import ROUNDINGS, by_columns, nearest, with_best_values
from secateur.pruners.saved import PACKED_NAME, pack_network, save_network
from secateur.reports.progress import RichReporter

ROUNDINGS.register("columns")(by_columns)
ROUNDINGS.register("solved")(lambda w, h, levels: with_best_values(w, h, nearest(w, h, levels)))

REPAIRS = {"nothing repaired": Repair(kind="none"), "fitted": Repair(guard=False)}
BARE, FITTED = REPAIRS
CELLS = {
    "row": [(criterion, repair) for criterion in ("nearest", "gptq") for repair in REPAIRS],
    "shared": [("nearest", BARE), ("gptq", BARE), ("gptq", FITTED)],
}
LOSING = ("nearest", "solved", "columns", "gptq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4, 3, 2], help="of the uniform plans")
    parser.add_argument("--mean", type=int, default=3, help="bits of the uniform plan whose bytes the others spend")
    parser.add_argument("--grid", choices=list(CELLS), default="row", help="what few bits stand for")
    parser.add_argument("--uniform", action="store_true", help="no other plans")
    parser.add_argument("--episodes", type=int, default=0, help="of the agent's search")
    parser.add_argument("--inputs", type=int, nargs="+", help="bits that a layer's inputs may have")
    args = parser.parse_args()
    torch.set_num_threads(1)
    (both_factors if args.inputs else weights_alone)(args)


def weights_alone(args: argparse.Namespace) -> None:
    """On bytes."""
    options = ("method=bits", f"layers.grid={args.grid}", "threads=1", f"agent.episodes={args.episodes or 1}")
    dense = Session(cifar_config(args.depth, args.data, *options, "budget.size=1"), reporter=RichReporter())
    mean = uniform(dense, args.mean)
    session = dense.beside(overrides=[f"budget.size={dense.structure.fraction('size', mean)!r}"])
    problem = SearchProblem(session.budget, session.context)
    plans = {f"uniform, {bits} bits": uniform(session, bits) for bits in args.bits}
    plans |= {f"uniform, {args.mean} bits": mean}
    if not args.uniform:
        plans["knapsack"] = get_allocator("knapsack", "bits").allocate(problem)
    if args.episodes and not args.uniform:
        plans["ddpg"] = RatioPlan.load(trained(session.config, 0, args.out / f"ddpg-{args.episodes}")).kept
    found = {name: measured(session, kept, args.out / args.grid) for name, kept in plans.items()}
    head = [
        f"ResNet-{args.depth}",
        "bytes",
        "packed",
        *(f"{criterion}, {repair}" for criterion, repair in CELLS[args.grid]),
    ]
    base = f"uniform, {args.mean} bits"
    rows = [
        [
            name,
            share(session, plans[name]),
            packed(session, plans[name], args.out / args.grid),
            *map(cell_of, of, found[base], [name == base] * len(of)),
        ]
        for name, of in found.items()
    ]
    print(header())
    print(table(head, rows))
    if args.grid == "shared":
        print("\n" + table(["1 − R²", *LOSING], [[name, *losses(session, kept)] for name, kept in plans.items()]))
    chosen = [f"{name} {plans[name].tolist()}" for name in ("knapsack", "ddpg") if name in plans]
    if chosen:
        print("\nbits by layer: " + "; ".join(chosen))


def both_factors(args: argparse.Namespace) -> None:
    """Weights and inputs, on bit operations."""
    options = (
        "method=bits",
        f"layers.activation_bits={args.inputs}",
        "threads=1",
        f"agent.episodes={args.episodes or 1}",
    )
    dense = Session(cifar_config(args.depth, args.data, *options, "budget.bops=1"), reporter=RichReporter())
    mean = uniform(dense, args.mean)
    session = dense.beside(overrides=[f"budget.bops={dense.structure.fraction('bops', mean)!r}"])
    fixed = session.beside(overrides=[f"layers.activation_bits={args.mean}"])
    base = f"uniform, {args.mean} bits"
    plans = {base: (session, mean)}
    for name, chooser in (("knapsack, weights", fixed), ("knapsack", session)):
        problem = SearchProblem(chooser.budget, chooser.context)
        plans[name] = chooser, get_allocator("knapsack", "bits").allocate(problem)
    if args.episodes:
        run = trained(session.config, 0, args.out / f"ddpg-{args.episodes}")
        plans["ddpg"] = session, RatioPlan.load(run).kept
    found = {
        name: [
            hits_of(
                of, kept, args.out / "inputs" / f"{name} {repair}.json", lambda s=of, k=kept, r=how: s.compressor(k, r)
            )
            for repair, how in REPAIRS.items()
        ]
        for name, (of, kept) in plans.items()
    }
    costs = {name: [of.structure.cost(kind, kept) for kind in ("bops", "size")] for name, (of, kept) in plans.items()}
    rows = [
        [
            name,
            *(f"{cost:,}" for cost in costs[name]),
            *map(cell_of, of, found[base], [name == base] * len(of)),
        ]
        for name, of in found.items()
    ]
    print(header())
    print(table([f"ResNet-{args.depth}", "bit operations", "bytes", *(f"gptq, {repair}" for repair in REPAIRS)], rows))
    for name, (of, kept) in plans.items():
        bits = {layer.name: int(number) for layer, number in zip(of.structure.layers, kept, strict=True)}
        weights = [number for layer, number in bits.items() if not layer.endswith(".inputs")]
        print(f"\n{name}: weights {weights}; inputs {[n for layer, n in bits.items() if layer.endswith('.inputs')]}")


def uniform(session: Session, bits: int) -> Kept:
    return np.full(len(session.structure.layers), bits, dtype=np.int64)


def share(session: Session, kept: Kept) -> str:
    size = session.structure.cost("size", kept)
    return f"{size} ({session.structure.cost('size', session.structure.units) / size:.1f} times fewer)"


def cell_of(of: Hits, base: Hits, itself: bool) -> str:
    return cell([of], base, itself)


def measured(session: Session, kept: Kept, folder: Path) -> list[Hits]:
    """By criterion and repair."""
    found = []
    for criterion, repair in CELLS[session.config.layers.grid]:
        ranked, how = session.beside(overrides=[f"criterion={criterion}"]), REPAIRS[repair]
        name = f"{'-'.join(map(str, kept))} {criterion} {repair}"
        found.append(hits_of(ranked, kept, folder / f"{name}.json", lambda s=ranked, r=how: s.compressor(kept, r)))
    return found


def losses(session: Session, kept: Kept) -> list[str]:
    """Of the layers' outputs, by criterion."""
    found = []
    for criterion in LOSING:
        context = session.beside(overrides=[f"criterion={criterion}"]).context
        compressed = context.method.apply(context, kept)
        found.append(f"{output_error(compressed, context.model, context.moments):.4f}")
    return found


def packed(session: Session, kept: Kept, folder: Path) -> str:
    """Bytes of the file, made as far as it is not there yet."""
    network = folder / f"network-{'-'.join(map(str, kept))}"
    if not (network / PACKED_NAME).is_file():
        model, recipe = session.compressor(kept, REPAIRS[FITTED]), session.compressor.compress(kept).recipe
        config, shape = session.config, session.input_shape
        about = {"network": config.network, "input_shape": shape, "objective": config.objective}
        save_network(model, network, method="bits", recipe=recipe, **about)
        pack_network(network, network)
    return f"{(network / PACKED_NAME).stat().st_size:,}"


if __name__ == "__main__":
    main()
