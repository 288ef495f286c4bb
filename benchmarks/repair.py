"""One-shot accuracy after every repair: CIFAR-10 ResNets, uniform sparsity, no fine-tuning.

python benchmarks/repair.py --data DIR    (DIR holds cifar10-lossless/ and weights/)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import cifar_session, header, table

from secateur.networks.inference import accuracy
from secateur.pruners.repair.batchnorm import adapt_batchnorm

REPAIRS = {
    "pruned, nothing repaired": ("none", False, False),
    "adaptive BN (2,000 images)": ("none", False, True),
    "least squares on the dense Gram": ("gram", False, False),
    "… then adaptive BN": ("gram", False, True),
    "sequential least squares": ("sequential", False, False),
    "… and producers re-fitted": ("sequential", True, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--draws", type=int, default=3, help="draws of the calibration images")
    args = parser.parse_args()
    print(header())
    columns: dict[int, dict[str, list[float]]] = {}
    for depth in args.depths:
        results: dict[str, list[float]] = {"dense": [], **{name: [] for name in REPAIRS}}
        for draw in range(args.draws):
            session = cifar_session(depth, args.data, f"data.split_seed={draw}", f"pruning.criterion={args.criterion}")
            more = cifar_session(depth, args.data, f"data.split_seed={draw}", "data.calibration=2000").calibration
            kept = np.round((1.0 - args.sparsity) * session.structure.units).astype(np.int64)
            assert session.test is not None
            results["dense"].append(accuracy(session.model, session.test))
            for name, (repair, refit, adapt) in REPAIRS.items():
                pruned = session.pruner.prune(kept, repair, refit=refit)
                if adapt:
                    adapt_batchnorm(pruned, more)
                results[name].append(accuracy(pruned, session.test))
        columns[depth] = results
    rows = [
        [name, *(f"{np.mean(columns[d][name]):.1f} ± {np.std(columns[d][name]):.1f}" for d in args.depths)]
        for name in ("dense", *REPAIRS)
    ]
    print(table([f"top-1, mean ± sd of {args.draws} draws", *(f"ResNet-{depth}" for depth in args.depths)], rows))


if __name__ == "__main__":
    main()
