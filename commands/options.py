"""Options that several commands of the console script have, and what they share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..configs import builtin_configs
from ..reports.progress import RichReporter
from ..storage.reading import read_json

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
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")]
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


def sizes(option: str, text: str) -> tuple[int, ...]:
    """Of a shape as people write it, 3x32x32; the option is for the message."""
    parts = text.lower().replace("×", "x").split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} {text}: sizes of one image, as in 3x224x224")
    return tuple(map(int, parts))


def reporter_of(*, as_json: bool) -> RichReporter:
    """On standard output, which is left to the JSON object where there is to be one."""
    return RichReporter(Console(stderr=True, markup=False, emoji=False) if as_json else None)


def wrote(reporter: RichReporter, folder: Path, *files: str, as_json: bool) -> None:
    """Say which of the files are there; or, as JSON, the folder and what the first of them holds."""
    for name in files:
        if (folder / name).exists():
            reporter.say(f"  {folder / name}")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **read_json(folder / files[0])}))
