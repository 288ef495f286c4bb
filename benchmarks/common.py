"""What benchmarks share: the lines above a table, the table, the session, and runs that go on where they stopped."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import secateur
from secateur import Session
from secateur.commands.compare import COMPARE_NAME
from secateur.commands.train import SUMMARY_NAME
from secateur.configs import load_config
from secateur.reports.progress import RichReporter


def header() -> str:
    """The command, the versions and the machine, as Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("secateur", "torch", "numpy"))
    command = shlex.join(["python", *(Path(a).name if a == sys.argv[0] else a for a in sys.argv)])
    command = command.replace("python ", "python benchmarks/", 1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"`{command}`  \n{versions}; Python {platform.python_version()}; {machine}\n"


def cifar_config(depth: int, data: Path, *overrides: str) -> secateur.Config:
    """That of the CIFAR-10 ResNet of that depth, on the images in `data/cifar10`, else in `data/cifar10-lossless`."""
    root = next((data / name for name in ("cifar10", "cifar10-lossless") if (data / name).is_dir()), data / "cifar10")
    return load_config(f"cifar10-resnet{depth}", [f"data.root={root}", *overrides])


def cifar_session(depth: int, data: Path, *overrides: str) -> Session:
    """The built-in CIFAR-10 ResNet of that depth, ready."""
    return Session(cifar_config(depth, data, *overrides))


def trained(config: secateur.Config, seed: int, run: Path) -> Path:
    """The run folder of a training: finished already, gone on with, or begun."""
    if not (run / SUMMARY_NAME).is_file():
        if _begun(run):
            secateur.train(Session(reporter=RichReporter()), resume=run)
        else:
            secateur.train(Session(config, seed=seed, reporter=RichReporter()), out=run)
    return run


def compared(plans: Sequence[Path], given: secateur.Config | Session, out: Path, **options: Any) -> dict[str, Any]:
    """What a comparison found: finished already, gone on with, or begun; `options` as of `secateur.compare`."""
    if not (out / COMPARE_NAME).is_file():
        where = {"resume": out} if _begun(out) else {"out": out}
        session = given if isinstance(given, Session) else Session(given, reporter=RichReporter())
        secateur.compare(plans, session, **where, **options)
    found: dict[str, Any] = json.loads((out / COMPARE_NAME).read_text(encoding="utf-8"))
    return found


def _begun(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def mean(values: Sequence[float], digits: int) -> str:
    """With its standard error, where there are several."""
    shown = f"{np.mean(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {error(values):.{digits}f}"


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
