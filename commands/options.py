"""Options that several commands of the console script have, and what they share."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from ..configs import builtin_configs
from ..reports.progress import RichReporter

CONFIG_HELP = f"A built-in config ({', '.join(builtin_configs())}) or a YAML file."
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the config: --set budget.flops=0.4")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Evaluate candidates on a Ray cluster: auto, HOST:PORT, or local to start one."),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code that is named as package.module:callable: a network, a method, …"),
]
Out = Annotated[Path | None, typer.Option("--out", help="A new or empty folder to write to.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help=CONFIG_HELP + " [default: the config beside the plan]")
]

COMMAND: ContextVar[str | None] = ContextVar("command", default=None)  # none where a function is called in Python


@contextmanager
def commanded(arguments: Sequence[str]) -> Iterator[None]:
    """While the console script runs with these arguments, `COMMAND` is what was typed."""
    token = COMMAND.set(shlex.join(("secateur", *arguments)))
    try:
        yield
    finally:
        COMMAND.reset(token)


def names(text: str) -> list[str]:
    """Of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def fractions(option: str, text: str) -> list[float]:
    """Of a list with commas; the option is for the message."""
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise ValueError(f"{option} {text}: numbers separated by commas, as in 0.25,0.5,0.75") from None


def wrote(reporter: RichReporter, folder: Path, *files: str) -> None:
    """Say which of the files are there."""
    for name in files:
        if (folder / name).exists():
            reporter.say(f"  {folder / name}")
