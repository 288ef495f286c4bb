"""Weights or channels pruned at equal sparsity: what each costs in theory, how long it takes, and what it knows.

python benchmarks/latency.py --data DIR    (DIR holds cifar10/ and weights/)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import cifar_session, header, table
from torch import nn

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.networks.inference import accuracy
from secateur.pruners import Kept, Structure
from secateur.pruners.costs.latency import measure_latency

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
            for rule in ("uniform", "global_magnitude"):
                candidates[f"{sparsity:g}", f"weights, {rule}"] = weights(session, sparsity, rule)
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


def weights(session: Session, sparsity: float, rule: str) -> Pruned:
    """The network with its smallest weights zeroed, and the fractions it keeps."""
    session = session.beside(overrides=["method=weights", "budget.params=1"])
    kept = allocated(session, rule, 1.0 - sparsity)
    return session.compressor.compress(kept).model, costs(session.structure, kept)


def allocated(session: Session, rule: str, fraction: float) -> Kept:
    """A rule's plan that keeps this fraction of the weights that can be pruned."""
    structure = session.structure
    whole, prunable = structure.cost("params", structure.units), int(structure.units.sum())
    budget = replace(session.budget, fraction=(whole - (1.0 - fraction) * prunable) / whole)
    return get_allocator(rule, "weights").allocate(SearchProblem(budget, session.context))


def channels(session: Session, sparsity: float) -> Pruned:
    """The smaller network, and the fractions it keeps."""
    kept = np.maximum(1, np.round((1.0 - sparsity) * session.structure.units).astype(np.int64))
    return session.compress(kept), costs(session.structure, kept)


def costs(structure: Structure, kept: Kept) -> Mapping[str, float]:
    return {kind: structure.fraction(kind, kept) for kind in ("params", "flops")}


if __name__ == "__main__":
    main()
