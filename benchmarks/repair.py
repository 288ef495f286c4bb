"""One-shot accuracy after every repair: CIFAR-10 ResNets, uniform sparsity, no fine-tuning.

python benchmarks/repair.py --data DIR    (DIR holds cifar10/ and weights/)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import cifar_session, header, table

from secateur.configs import Repair
from secateur.networks.inference import accuracy
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
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--draws", type=int, default=3, help="draws of the calibration images")
    args = parser.parse_args()
    print(header())
    columns: dict[int, dict[str, list[float]]] = {}
    for depth in args.depths:
        results: dict[str, list[float]] = {"dense": [], **{name: [] for name in REPAIRS}}
        for draw in range(args.draws):
            session = cifar_session(depth, args.data, f"data.split_seed={draw}", f"criterion={args.criterion}")
            more = cifar_session(depth, args.data, f"data.split_seed={draw}", "data.calibration=2000").calibration
            kept = np.round((1.0 - args.sparsity) * session.structure.units).astype(np.int64)
            assert session.test is not None
            results["dense"].append(accuracy(session.model, session.test))
            for name, (repair, adapt) in REPAIRS.items():
                pruned = session.compressor(kept, repair)
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
