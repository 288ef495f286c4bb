"""A network dense and pruned, in every runtime, in single precision and in 8-bit integers: accuracy, bytes, time.

python benchmarks/export.py --data DIR    (DIR holds cifar10/ and weights/)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import cifar_session, header, table
from torch import nn

from secateur import Session
from secateur.agents import SearchProblem, get_allocator
from secateur.networks.inference import count_images, first_images
from secateur.runtimes import RUNTIMES, Program, Run
from secateur.runtimes.timing import milliseconds
from secateur.training.inputs import taken


@dataclass
class File:
    """A file, opened with one thread."""

    network: str
    runtime: str
    numbers: str
    size: int
    program: Program
    run: Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--rule", default="uniform")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--passes", type=int, default=50, help="timed, of every file; they take turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    session = cifar_session(args.depth, args.data, f"budget.flops={args.flops}")
    budget = replace(session.budget, fraction=args.flops)
    kept = get_allocator(args.rule, "channels").allocate(SearchProblem(budget, session.context))
    networks = {"dense": session.model, f"{args.rule}, {100 * args.flops:g} % of the FLOPs": session.compress(kept)}
    with tempfile.TemporaryDirectory() as folder:
        files = [file for name, model in networks.items() for file in made(session, name, model, Path(folder))]
        for file in files:
            print(f"{file.network}: {file.runtime} {file.numbers}", flush=True)
        batch = first_images(session.calibration, args.batch)[0][0]
        batch = taken(batch, slice(args.batch))
        given = {label(file): file.program.inputs_of(batch) for file in files}
        times = milliseconds({label(f): f.run for f in files}, given, threads=1, passes=args.passes)
        assert session.test is not None
        rows = []
        for file in files:
            ms, dense = times[label(file)], times[label(replace(file, network="dense"))]
            figures = [f"{measure(session, file):.2f}", f"{file.size:,}", f"{ms:.1f}", f"{ms / dense:.2f}"]
            rows.append([file.network, file.runtime, file.numbers, *figures, f"{ms / times[label(files[0])]:.2f}"])
    head = ["network", "runtime", "numbers", session.objective.measure, "bytes", "ms", "of dense, same", "of eager"]
    print(table(head, rows))
    packages = sorted({text for name in RUNTIMES for text in map(" ".join, RUNTIMES[name].versions().items())})
    print(
        f"\n{', '.join(packages)}. Accuracy in the runtime, on {count_images(session.test):,} test images; ms: median "
        f"of {args.passes} passes of {args.batch} images on one thread, all files in turns, processor time. 8-bit "
        f"ranges from {count_images(session.calibration)} calibration images. Nothing is fine-tuned."
    )


def label(file: File) -> str:
    return f"{file.network} {file.runtime} {file.numbers}"


def made(session: Session, name: str, model: nn.Module, folder: Path) -> Iterator[File]:
    """Every file of a network."""
    program = Program.of(model, session.calibration[0][0])
    for known in ("eager", "onnxruntime", "openvino"):
        runtime = RUNTIMES[known]
        paths = {"float32": folder / f"{name[:5]}-{known}{runtime.suffix}"}
        runtime.export(program, paths["float32"], {"network": name})
        if runtime.int8:
            paths["int8"] = folder / f"{name[:5]}-{known}-int8{runtime.suffix}"
            seen = (program.inputs_of(images) for images, _ in session.calibration)
            runtime.quantise(paths["float32"], paths["int8"], seen, {"network": name})
        for numbers, path in paths.items():
            size = sum(part.stat().st_size for part in runtime.files(path))
            yield File(name, known, numbers, size, program, runtime.open(path, 1))


def measure(session: Session, file: File) -> float:
    """The objective's, counted in the runtime."""
    assert session.test is not None
    outputs = ((file.program.outputs_of(file.run(file.program.inputs_of(x))), targets) for x, targets in session.test)
    return session.objective.total(torch.cat([session.objective.statistics(*pair) for pair in outputs]))


if __name__ == "__main__":
    main()
