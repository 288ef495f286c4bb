"""At equal measured latency in the runtime that ships: what a plan made for it gains over plans made for FLOPs.

python benchmarks/equal_latency.py --data DIR --set latency.runtime=onnxruntime
python benchmarks/equal_latency.py --data DIR --set latency.runtime=openvino --set latency.precision=int8

`--data DIR` holds `cifar10/` and `weights/`. Every row is a rule's plan whose exported network takes no more than
`--latency` of the dense one's, as measured: the budget that the rule is asked for is bisected on the clock, all rows of
a latency in turns with the dense network. So a table that is wrong gains nothing. Of a rule's plans that are fast
enough the one counts whose repaired network is best on the search images. *Runtime*: `knapsack` on a budget of
latency, residual branches may go; *branches stay*: they may not; *multiples*: choices are multiples of 8 besides;
*FLOPs*: `knapsack` on a budget of FLOPs; *uniform*: the same sparsity everywhere. Networks are repaired as in the end,
not fine-tuned; top-1 is counted in the runtime, on the file, on all test images. Behind it stands what it is over that
of *FLOPs*, with the standard error of the difference on the same images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
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
AGAINST = "FLOPs"


@dataclass
class Row:
    """A rule that is asked for less and less, until its network is as fast as asked.

    Attributes:
        name: of the row.
        session: whose choices it has.
        rule: an allocator.
        kind: of the budget that is bisected.
        low, high: parts of the dense network's cost, between which what is looked for lies.
        fast: the plans that were as fast as asked, with their parts of the latency.
    """

    name: str
    session: Session
    rule: str
    kind: CostKind
    low: float = 0.0
    high: float = 1.0
    fast: list[tuple[Kept, float]] = field(default_factory=list)

    def asked(self) -> Kept | None:
        """The plan in the middle; none where the budget cannot be met."""
        budget = self.session.budget
        try:
            there = replace(budget, kind=self.kind, fraction=(self.low + self.high) / 2, besides={})
        except PlanError:
            return None
        return get_allocator(self.rule, "channels").allocate(SearchProblem(there, self.session.context))

    def told(self, kept: Kept | None, part: float, limit: float) -> None:
        """What the plan in the middle took, of the dense network's latency."""
        middle = (self.low + self.high) / 2
        if kept is None or part <= limit * SLACK:
            self.low = middle
            if kept is not None:
                self.fast.append((kept, part))
        else:
            self.high = middle

    def best(self) -> tuple[nn.Module, Kept, float] | None:
        """The best on the search images, repaired, among those that were as fast as asked."""
        found: dict[tuple[int, ...], tuple[nn.Module, Kept, float]] = {}
        for kept, part in self.fast:
            if tuple(kept) not in found:
                found[tuple(kept)] = self.session.compress(kept), kept, part
        return max(found.values(), key=lambda one: accuracy(one[0], self.session.search), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.8, 0.65, 0.5], help="parts of the dense one's")
    parser.add_argument("--steps", type=int, default=6, help="of every bisection")
    parser.add_argument("--runs", type=int, default=25, help="timed passes of every network, which take turns")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="on top of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    head = [f"ResNet-{args.depth}, latency", "plan", "FLOPs %", "latency % by the table", "measured", "top-1"]
    rows = [line for limit in args.latency for line in measured(args, limit)]
    print(table(head, rows), flush=True)


def measured(args: argparse.Namespace, limit: float) -> Iterator[list[str]]:
    """The lines of one latency."""
    rows = list(asked_of(args))
    for _ in range(args.steps):
        plans = [row.asked() for row in rows]
        models = {"dense": rows[0].session.model} | {
            row.name: row.session.compressor.compress(kept).model
            for row, kept in zip(rows, plans, strict=True)
            if kept is not None
        }
        config = rows[0].session.config.latency
        times = measure_latency(models, rows[0].session.input_shape, config, runs=args.runs)
        for row, kept in zip(rows, plans, strict=True):
            row.told(kept, times.get(row.name, 0.0) / times["dense"], limit)
    best = {row.name: row.best() for row in rows}
    hits = {row.name: hits_in_runtime(row.session, found[0]) for row in rows if (found := best[row.name])}
    for row in rows:
        found = best[row.name]
        if found is None:
            yield [f"{limit:g}", row.name, "not reached", *[""] * 3]
            continue
        _, kept, part = found
        costs = [f"{100 * row.session.structure.fraction(kind, kept):.1f}" for kind in ("flops", "latency")]
        alone = row.name == AGAINST or AGAINST not in hits
        top1 = cell([hits[row.name]], hits.get(AGAINST, hits[row.name]), alone)
        yield [f"{limit:g}", row.name, *costs, f"{100 * part:.1f}", top1]


def asked_of(args: argparse.Namespace) -> Iterator[Row]:
    """A row each, not yet bisected."""
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
