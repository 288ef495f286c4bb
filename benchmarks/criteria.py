"""One-shot accuracy of every criterion after every repair: CIFAR-10 ResNets at half the FLOPs, no fine-tuning.

python benchmarks/criteria.py --data DIR    (DIR holds cifar10/ and weights/)
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from common import cifar_session, header, table

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import Repair
from secateur.networks.inference import accuracy, channels_last
from secateur.pruners.channels.criteria import CRITERIA

REPAIRS = {
    "nothing": Repair(kind="none"),
    "adaptive BN": Repair(kind="none", adaptive_bn=500),
    "dense Gram": Repair(kind="gram"),
    "sequential": Repair(kind="sequential", refit=False),
    "… producers re-fitted": Repair(kind="sequential"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--allocators", nargs="+", default=["uniform"])
    parser.add_argument("--draws", type=int, default=3, help="draws of the calibration images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    for depth in args.depths:
        rows = []
        draws = [
            cifar_session(depth, args.data, f"data.split_seed={draw}", "layers.max_sparsity=0.95")
            for draw in range(args.draws)
        ]
        for criterion in args.criteria:
            found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in args.allocators}
            for draw, drawn in enumerate(draws):
                session = drawn.beside(overrides=[f"criterion={criterion}"])
                for name in args.allocators:
                    for repair, figure in accuracies(session, name).items():
                        found[name][repair].append(figure)
                        print(f"ResNet-{depth} {criterion} draw {draw} {name} {repair}: {figure:.2f}", file=sys.stderr)
            for name, figures in found.items():
                rows.append(
                    [criterion, name, str(args.draws), *(mean_and_deviation(figures[repair]) for repair in REPAIRS)]
                )
        print(f"\nResNet-{depth}, half of the FLOPs; top-1 on the test images, mean ± sd over the draws\n")
        print(table(["criterion", "allocator", "draws", *REPAIRS], rows), flush=True)


def accuracies(session: Session, allocator: str) -> dict[str, float]:
    """Repair → top-1 on the test images, of the network of this allocator's plan."""
    assert session.test is not None
    test = [(channels_last(images), labels) for images, labels in session.test]
    kept = get_allocator(allocator).allocate(SearchProblem(session.budget, session.context))
    return {repair: accuracy(session.compressor(kept, how), test) for repair, how in REPAIRS.items()}


def mean_and_deviation(figures: list[float]) -> str:
    return f"{np.mean(figures):.1f} ± {np.std(figures):.1f}" if len(figures) > 1 else f"{figures[0]:.1f}"


if __name__ == "__main__":
    main()
