"""At equal measured latency in the runtime that ships: what a plan made for it gains over plans made for FLOPs.

python benchmarks/equal_latency.py --data DIR --set latency.runtime=onnxruntime
python benchmarks/equal_latency.py --data DIR --set latency.runtime=openvino --set latency.precision=int8

`--data DIR` holds `cifar10/` and `weights/`. Every rule is asked for plans at many budgets; their exported networks are
timed in turns, with the dense one, and a plan of a rule stands at a latency if its network took no more than that part
of the dense one's time. So a table that is wrong gains nothing. Of the two dearest that are fast enough the one counts
whose repaired network is better on the search images. *Runtime*: `knapsack` on a budget of latency, residual branches
may go; *branches stay*: they may not; *multiples*: choices are multiples of 8 besides; *FLOPs*: `knapsack` on a budget
of FLOPs; *uniform*: the same sparsity everywhere. Networks are repaired as in the end, not fine-tuned; top-1 is counted
in the runtime, on the file, on all test images. Behind it stands what it is over that of *FLOPs*, with the standard
error of the difference on the same images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from common import cifar_session, header, table
from torch import nn
from weights import Hits, cell

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import CostKind
from secateur.networks.inference import accuracy
from secateur.pruners import Kept
from secateur.pruners.costs.latency import measure_latency
from secateur.pruners.structure import PlanError
from secateur.runtimes import RUNTIMES, Program

SLACK = 1.01  # of the latency asked: what two medians of one network differ by
TRIED = 2  # plans that are fast enough, on the search images
AGAINST = "FLOPs"


@dataclass
class Row:
    """A rule, and what it was asked for.

    Attributes:
        name: of the row.
        session: whose choices it has.
        rule: an allocator.
        kind: of its budgets.
        plans: one for every budget that can be met, the dearest first; no two alike.
        parts: of the dense network's latency, of each.
        repaired: networks of some, by their place.
    """

    name: str
    session: Session
    rule: str
    kind: CostKind
    plans: list[Kept] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    repaired: dict[int, nn.Module] = field(default_factory=dict)

    def ask(self, budgets: Sequence[float]) -> None:
        """Make the plans."""
        for fraction in sorted(budgets, reverse=True):
            try:
                budget = replace(self.session.budget, kind=self.kind, fraction=fraction, besides={})
            except PlanError:  # less than a plan can cost
                return
            kept = get_allocator(self.rule, "channels").allocate(SearchProblem(budget, self.session.context))
            if not any(np.array_equal(kept, other) for other in self.plans):
                self.plans.append(kept)

    def best(self, limit: float) -> int | None:
        """The place of the plan that counts at a latency; none where no plan is as fast."""
        fast = [number for number, part in enumerate(self.parts) if part <= limit * SLACK][:TRIED]
        return max(fast, key=lambda number: accuracy(self.network(number), self.session.search), default=None)

    def network(self, number: int) -> nn.Module:
        """Cut and repaired."""
        if number not in self.repaired:
            self.repaired[number] = self.session.compress(self.plans[number])
        return self.repaired[number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.8, 0.65, 0.5], help="parts of the dense one's")
    parser.add_argument(
        "--budgets", type=int, default=20, help="that every rule is asked for, evenly from 0.05 to 0.98"
    )
    parser.add_argument("--runs", type=int, default=25, help="timed passes of every network, which take turns")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    head = [f"ResNet-{args.depth}, latency", "plan", "FLOPs %", "latency % by the table", "measured", "top-1"]
    rows = timed(args)
    for row in rows:
        print(f"{row.name}: {len(row.plans)} plans, the fastest takes {min(row.parts, default=1.0):.3f}", flush=True)
    lines = [line for limit in args.latency for line in reached(rows, limit)]
    print("\n" + table(head, lines), flush=True)


def timed(args: argparse.Namespace) -> list[Row]:
    """All rows, their plans' networks timed in turns."""
    rows = list(asked_of(args))
    models = {"dense": rows[0].session.model}
    for row in rows:
        row.ask(np.linspace(0.05, 0.98, args.budgets).tolist())
        for number, kept in enumerate(row.plans):
            models[f"{row.name} {number}"] = row.session.compressor.compress(kept).model
    times = measure_latency(models, rows[0].session.input_shape, rows[0].session.config.latency, runs=args.runs)
    for row in rows:
        row.parts = [times[f"{row.name} {number}"] / times["dense"] for number in range(len(row.plans))]
    return rows


def reached(rows: list[Row], limit: float) -> Iterator[list[str]]:
    """The lines of one latency."""
    best = {row.name: row.best(limit) for row in rows}
    hits = {row.name: hits_in_runtime(row.session, row.network(n)) for row in rows if (n := best[row.name]) is not None}
    for row in rows:
        number = best[row.name]
        if number is None:
            yield [f"{limit:g}", row.name, "not reached", *[""] * 3]
            continue
        costs = [row.session.structure.fraction(kind, row.plans[number]) for kind in ("flops", "latency")]
        alone = row.name == AGAINST or AGAINST not in hits
        top1 = cell([hits[row.name]], hits.get(AGAINST, hits[row.name]), alone)
        yield [f"{limit:g}", row.name, *(f"{100 * part:.1f}" for part in (*costs, row.parts[number])), top1]


def asked_of(args: argparse.Namespace) -> Iterator[Row]:
    """A row each, not yet asked."""
    given = ("budget.latency=1", "threads=1", *args.overrides)
    free = cifar_session(args.depth, args.data, *given, "layers.branches=true")
    whole = cifar_session(args.depth, args.data, *given)
    blocks = cifar_session(args.depth, args.data, *given, "layers.branches=true", "layers.round_to=8")
    yield Row("runtime", free, "knapsack", "latency")
    yield Row("runtime, branches stay", whole, "knapsack", "latency")
    yield Row("runtime, multiples", blocks, "knapsack", "latency")
    yield Row(AGAINST, whole, "knapsack", "flops")
    yield Row("uniform", whole, "uniform", "flops")


def hits_in_runtime(session: Session, model: nn.Module) -> Hits:
    """Which test images the exported network answers right."""
    assert session.test is not None
    asked = session.config.latency
    program = Program.of(model, session.calibration[0][0])
    runtime = RUNTIMES[asked.runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{runtime.suffix}"
        runtime.export(program, path, {})
        if asked.precision == "int8":
            path, plain = Path(folder) / f"int8{runtime.suffix}", path
            runtime.quantise(plain, path, (program.inputs_of(images) for images, _ in session.calibration), {})
        run = runtime.open(path, 1)
        answers = (program.outputs_of(run(program.inputs_of(x))).argmax(1) == y for x, y in session.test)
        return np.concatenate([right.double().numpy() for right in answers])


if __name__ == "__main__":
    main()
