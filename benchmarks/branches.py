"""Residual branches that may go altogether: the knapsack with that choice and without.

python benchmarks/branches.py --data DIR    (some six minutes)

`--data DIR` holds `cifar10/` and `weights/`. Both plans are found by one loss model, on the same budget; for the second
one `layers.bounds` keeps every branch. The networks are repaired as in the end and evaluated on all test images;
predicted is the distance of their logits from the dense network's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import cifar_session, header, table

from secateur import Session
from secateur.networks.inference import accuracy
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.loss_model import LossModel, best_steps
from secateur.pruners.structure import PlanError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3])
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    options = ("layers.branches=true", f"budget.flops={args.budgets[0]}", "threads=1", *args.overrides)
    session = cifar_session(args.depth, args.data, *options)
    losses = LossModel.of(session.context)
    head = ["FLOPs asked", "branches", "gone", "FLOPs", "params", "ms, a batch of 32", "predicted", "search", "test"]
    rows = [row for fraction in args.budgets for row in compared(session, losses, fraction)]
    print(table(head, rows), flush=True)


def compared(session: Session, losses: LossModel, fraction: float) -> list[list[str]]:
    """The two plans of a budget."""
    structure, rows = session.structure, []
    most = session.budget.max_sparsity
    for name, bounds in (("may go", {}), ("stay", {"*": (0.0, most)})):
        try:
            budget = replace(session.budget, fraction=fraction, bounds=bounds)
        except PlanError:
            rows.append([f"{100 * fraction:g} %", name, "cannot be met", *[""] * 6])
            continue
        kept = best_steps(budget, losses.gains(budget))
        model = session.compress(kept)
        assert session.test is not None
        scores = [accuracy(model, images, session.objective) for images in (session.search, session.test)]
        latency = measure_latency({"model": model}, structure.input_shape, session.config.latency)["model"]
        costs = [f"{structure.fraction(kind, kept):.3f}" for kind in ("flops", "params")]
        gone = f"{len(structure.gone(kept))} of {len(structure.branches)}"
        figures = [f"{latency:.1f}", f"{float(losses.predict(kept)):.3f}", *(f"{score:.2f}" for score in scores)]
        rows.append([f"{100 * fraction:g} %", name, gone, *costs, *figures])
        print(f"{name}: {kept.tolist()}\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
