"""One-shot accuracy after every repair: CIFAR-10 ResNets, uniform sparsity or an allocator's plan, no fine-tuning.

python benchmarks/repair.py --data DIR    (DIR holds cifar10/ and weights/)
python benchmarks/repair.py --data DIR --allocator knapsack --flops 0.5 --distill 16 --draws 1
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from common import cifar_session, header, table

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Repair
from secateur.networks.inference import accuracy, channels_last
from secateur.pruners.repair.batchnorm import adapt_batchnorm

REPAIRS = {  # and whether batch norms adapt to more images than were repaired on
    "pruned, nothing repaired": (Repair(kind="none"), False),
    "adaptive BN (2,000 images)": (Repair(kind="none"), True),
    "least squares on the dense Gram": (Repair(kind="gram"), False),
    "… then adaptive BN": (Repair(kind="gram"), True),
    "sequential least squares": (Repair(kind="sequential", refit=False), False),
    "… and producers re-fitted": (Repair(kind="sequential"), False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--sparsity", type=float, default=0.5, help="of every layer, where no allocator is named")
    parser.add_argument("--allocator", help="whose plan is repaired")
    parser.add_argument("--flops", type=float, default=0.5, help="the allocator's budget")
    parser.add_argument("--criterion", help="none: l1 with --sparsity, else the method's own")
    parser.add_argument("--calibration", type=int, default=500, help="images that repair")
    parser.add_argument("--repairs", nargs="*", choices=list(REPAIRS), default=list(REPAIRS), help="rows")
    parser.add_argument("--distill", type=int, nargs="*", default=[], help="passes, one row each")
    parser.add_argument("--draws", type=int, default=3, help="draws of the calibration images")
    args = parser.parse_args()
    print(header())
    columns: dict[int, dict[str, list[list[float]]]] = {}
    for depth in args.depths:
        results: dict[str, list[list[float]]] = {}
        for draw in range(args.draws):
            session = opened(args, depth, draw)
            for name, figures in measured(args, session, depth, draw).items():
                results.setdefault(name, []).append(figures)
                print(f"ResNet-{depth} draw {draw} {name}: {figures}", file=sys.stderr)
        columns[depth] = results
    rows = [[name, *(told(columns[d][name]) for d in args.depths)] for name in columns[args.depths[0]]]
    print(
        table([f"top-1, mean ± sd of {args.draws} draws (CPU s)", *(f"ResNet-{depth}" for depth in args.depths)], rows)
    )


def opened(args: argparse.Namespace, depth: int, draw: int) -> Session:
    """The network with its images."""
    criterion = args.criterion or (None if args.allocator else "l1")
    ranked = [f"criterion={criterion}"] if criterion else []
    images = f"data.calibration={args.calibration}"
    return cifar_session(depth, args.data, f"budget.flops={args.flops}", f"data.split_seed={draw}", images, *ranked)


def measured(args: argparse.Namespace, session: Session, depth: int, draw: int) -> dict[str, list[float]]:
    """Repair → top-1 on the test images, CPU seconds of the repair."""
    assert session.test is not None
    if args.allocator:
        kept = get_allocator(args.allocator).allocate(SearchProblem(session.budget, session.context))
    else:
        kept = np.round((1.0 - args.sparsity) * session.structure.units).astype(np.int64)
    repairs = {name: REPAIRS[name] for name in args.repairs}
    repairs |= {f"… then distilled, {passes} passes": (Repair(distill=passes), False) for passes in args.distill}
    test = [(channels_last(images), labels) for images, labels in session.test]
    found = {"dense": [accuracy(session.model, test), 0.0]}
    for name, (repair, adapt) in repairs.items():
        start = time.process_time()
        pruned = session.compressor(kept, repair)
        took = time.process_time() - start
        if adapt:
            more = cifar_session(depth, args.data, f"data.split_seed={draw}", "data.calibration=2000").calibration
            adapt_batchnorm(pruned, more)
        found[name] = [accuracy(pruned, test), took]
    return found


def told(figures: list[list[float]]) -> str:
    """Of all draws."""
    top, seconds = np.array(figures).T
    return f"{top.mean():.2f} ± {top.std():.2f} ({seconds.mean():.0f})"


if __name__ == "__main__":
    main()
