"""A budget of measured latency: whether the table behind it is right, and what it buys over a budget of FLOPs.

python benchmarks/latency_budget.py --data DIR    (DIR holds cifar10/ and weights/)
python benchmarks/latency_budget.py --data DIR --set latency.runtime=onnxruntime --set latency.precision=int8
python benchmarks/latency_budget.py --data DIR --depths 20 --random 6 --budgets --set method=lowrank
python benchmarks/latency_budget.py --data DIR --depths --budgets --networks mobilenet_v2 vgg16_bn

The table of one network is taken on this machine, in this run or an earlier one (it is cached). *Right*: the latency
it predicts for random plans against the whole networks' measured latency, both as a fraction of the dense network's.
*Bought*: the plans of `knapsack` and `uniform` for a budget of latency, and those for the budget of FLOPs that the
table says is as fast; all of them timed in turn, repaired alike and evaluated on the test images. `--networks` are
torchvision's, with random weights, on images of `--size` pixels: speed alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar_session, header, table
from scale import config, write_images, write_weights

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.agents.allocators.searches import random_plans
from secateur.configs import load_config
from secateur.networks.inference import accuracy
from secateur.pruners import Budget, Kept
from secateur.pruners.costs.latency import measure_latency
from secateur.reports.progress import RichReporter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="*", default=[20, 56])
    parser.add_argument("--networks", nargs="*", default=[], help="torchvision's names: the table alone is tried")
    parser.add_argument("--size", type=int, default=64, help="pixels of the images of those")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.85, 0.75, 0.65])
    parser.add_argument("--random", type=int, default=12, help="random plans that the table is tried on")
    parser.add_argument("--runs", type=int, default=25, help="timed passes of every network, which take turns")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    errors, rows = [], []
    for depth in args.depths:
        session = cifar_session(depth, args.data, "budget.latency=1", "threads=1", *args.overrides)
        errors.append([f"ResNet-{depth}", *table_error(session, args.random, args.runs)])
        if args.budgets:
            rows += [[f"ResNet-{depth}", *row] for row in bought(session, args.budgets, args.runs)]
    for name in args.networks:
        errors.append([name, *table_error(untrained(args, name), args.random, args.runs)])
    print(
        table(["network", "dense, ms", "by the table", "random plans", "mean error", "largest", "correlation"], errors)
    )
    head = ["network", "budget", "rule", "FLOPs %", "latency % by the table", "latency % measured", "top-1"]
    if rows:
        print("\n" + table(head, rows))


def untrained(args: argparse.Namespace, name: str) -> Session:
    """A network of torchvision's with random weights, on a few made-up images."""
    few = argparse.Namespace(data=args.data, size=args.size, seed=0, calibration=20, search=20, test=20)
    write_images(few)
    write_weights(few, name)
    given = ["budget.latency=1", "threads=1", "layers.max_sparsity=0.9", *args.overrides]
    return Session(load_config(config(few, name), given), reporter=RichReporter())


def table_error(session: Session, count: int, runs: int) -> list[str]:
    """The table against the clock, on the dense network and on random plans of two thirds of its latency, or of what
    can be reached, and more."""
    rng = np.random.default_rng(0)
    least = floor(session)
    if least >= 1.0:
        return ["–", "–", "0", "nothing narrower is faster by the table", "–", "–"]
    fractions = np.linspace(max(0.65, min(1.001 * least, 1.0)), max(0.95, (1.0 + least) / 2), count)
    plans = [
        random_plans(SearchProblem(_budget(session, "latency", k), session.context, rng=rng), 1)[0] for k in fractions
    ]
    measured = measure(session, plans, runs)
    found = np.array([ms / measured[0] for ms in measured[1:]])
    predicted = np.array([session.structure.fraction("latency", kept) for kept in plans])
    off = np.abs(predicted - found) / found
    dense = session.structure.cost("latency", session.structure.units) / 1e6
    figures = [f"{100 * value:.1f} %" for value in (off.mean(), off.max())]
    return [f"{measured[0]:.1f}", f"{dense:.1f}", str(count), *figures, f"{np.corrcoef(predicted, found)[0, 1]:.3f}"]


def bought(session: Session, budgets: list[float], runs: int) -> list[list[str]]:
    """Rows: the plans for a latency, and those for as fast a budget of FLOPs."""
    assert session.test is not None
    named: list[tuple[str, str, Kept]] = []
    least = floor(session)
    for fraction in budgets:
        if fraction < least:
            print(f"latency {fraction:g} cannot be met: every layer at its least keeps {least:.3f}\n")
            continue
        for rule in ("knapsack", "uniform"):
            kept = _plan(session, rule, "latency", fraction)
            named.append((f"latency {fraction:g}", rule, kept))
            named.append((f"FLOPs, as fast as latency {fraction:g}", rule, as_fast(session, rule, kept)))
    measured = measure(session, [kept for *_, kept in named], runs)
    rows = []
    for (budget, rule, kept), ms in zip(named, measured[1:], strict=True):
        cost = [session.structure.fraction(kind, kept) for kind in ("flops", "latency")]
        figures = [f"{100 * value:.1f}" for value in (*cost, ms / measured[0])]
        rows.append([budget, rule, *figures, f"{accuracy(session.compress(kept), session.test):.1f}"])
    return rows


def floor(session: Session) -> float:
    """The least latency that a plan can have, by the table."""
    return session.structure.fraction("latency", _budget(session, "latency", 1.0).least)


def measure(session: Session, plans: list[Kept], runs: int) -> list[float]:
    """Milliseconds of the dense network and of every plan's, in turns."""
    models = {"dense": session.model} | {str(i): session.compressor.compress(w).model for i, w in enumerate(plans)}
    return list(measure_latency(models, session.input_shape, session.config.latency, runs=runs).values())


def as_fast(session: Session, rule: str, kept: Kept) -> Kept:
    """A rule's plan for the largest budget of FLOPs that the table gives no more latency than a plan's."""
    limit, low, high = session.structure.fraction("latency", kept), 0.0, 1.0
    found = kept
    for _ in range(12):
        middle = (low + high) / 2
        try:
            tried = _plan(session, rule, "flops", middle)
        except ValueError:  # less than a plan can cost
            low = middle
            continue
        if session.structure.fraction("latency", tried) <= limit:
            low, found = middle, tried
        else:
            high = middle
    return found


def _plan(session: Session, rule: str, kind: Any, fraction: float) -> Kept:
    return get_allocator(rule).allocate(SearchProblem(_budget(session, kind, fraction), session.context))


def _budget(session: Session, kind: Any, fraction: float) -> Budget:
    return replace(session.budget, kind=kind, fraction=fraction)


if __name__ == "__main__":
    main()
