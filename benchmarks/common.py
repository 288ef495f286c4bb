"""What every benchmark prints above its table: command, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch

from secateur.commands.task import Task, make_task
from secateur.configs import load_config


def header() -> str:
    """The command, the versions and the machine, as Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("secateur", "torch", "numpy"))
    command = shlex.join(["python", *(Path(a).name if a == sys.argv[0] else a for a in sys.argv)])
    command = command.replace("python ", "python benchmarks/", 1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"`{command}`  \n{versions}; Python {platform.python_version()}; {machine}\n"


def cifar_task(depth: int, data: Path, *overrides: str) -> Task:
    """The built-in CIFAR-10 ResNet of that depth on the images in `data/cifar10-lossless`."""
    return make_task(load_config(f"cifar10-resnet{depth}", [f"data.root={data / 'cifar10-lossless'}", *overrides]))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
