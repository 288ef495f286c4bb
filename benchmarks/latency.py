"""Weights or channels pruned at equal sparsity: what each costs in theory, how long it takes, and what it knows.

python benchmarks/latency.py --data DIR    (DIR holds cifar10-lossless/ and weights/)
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import cifar_session, header, table
from torch import nn

from secateur.commands.session import Session
from secateur.networks.inference import accuracy
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.structure import Structure
from secateur.pruners.weights import find_weights, kept_weights, prune_weights

Pruned = tuple[nn.Module, Mapping[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--runs", type=int, default=25, help="timed passes of every network, which take turns")
    args = parser.parse_args()
    print(header())
    rows = []
    for depth in args.depths:
        session = cifar_session(depth, args.data)
        candidates: dict[tuple[str, str], Pruned] = {("–", "dense"): (session.model, {"params": 1.0, "flops": 1.0})}
        for sparsity in args.sparsities:
            for scope in ("layer", "global"):
                candidates[f"{sparsity:g}", f"weights, {scope}"] = weights(session, sparsity, scope)
            candidates[f"{sparsity:g}", "channels"] = channels(session, sparsity)
        models = {" ".join(key): model for key, (model, _) in candidates.items()}
        latency = measure_latency(models, session.input_shape, session.config.latency, runs=args.runs)
        dense = latency["– dense"]
        assert session.test is not None
        for key, (model, cost) in candidates.items():
            time = latency[" ".join(key)]
            figures = [
                f"{100 * cost['params']:.1f}",
                f"{100 * cost['flops']:.1f}",
                f"{time:.1f}",
                f"{time / dense:.2f}",
            ]
            rows.append([f"ResNet-{depth}", *key, *figures, f"{accuracy(model, session.test):.1f}"])
    head = ["network", "sparsity", "pruned", "params %", "FLOPs %", "ms", "of dense", "top-1 one-shot"]
    print(table(head, rows))
    print(
        f"\nms: median of {args.runs} passes of {session.config.latency.batch} images, the networks of one depth "
        "taking turns, all in the default memory format. FLOPs of weights: without the zeros, which dense kernels "
        "multiply all the same. Channels: the same sparsity in every block, residual trunks whole, ranked and repaired "
        "as `apply` does (500 calibration images). Weights: nothing repaired. No fine-tuning."
    )


def weights(session: Session, sparsity: float, scope: str) -> Pruned:
    """The masked network, and the fractions it keeps."""
    model = copy.deepcopy(session.model)
    structure = find_weights(model, session.input_shape)
    return model, costs(structure, kept_weights(structure, prune_weights(model, structure, sparsity, scope)))


def channels(session: Session, sparsity: float) -> Pruned:
    """The smaller network, and the fractions it keeps."""
    kept = np.maximum(1, np.round((1.0 - sparsity) * session.structure.units).astype(np.int64))
    return session.prune(kept), costs(session.structure, kept)


def costs(structure: Structure, kept: np.ndarray) -> Mapping[str, float]:
    return {kind: structure.fraction(kind, kept) for kind in ("params", "flops")}


if __name__ == "__main__":
    main()
