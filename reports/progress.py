"""What a person watches while work goes on. The base class says nothing: for callers in Python, and for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Advance = Callable[[str], None]


def _ignore(note: str = "") -> None:
    """Advance no bar."""


class Reporter:
    """Takes lines, tables and progress, and drops them."""

    def say(self, text: str) -> None:
        """One line."""

    def show(self, table: Table) -> None:
        """A table."""

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar; the yielded function advances it by one and sets the text behind it."""
        yield _ignore


class RichReporter(Reporter):
    """Draws on a terminal; in a log file the bars become a line when they end."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table."""
        self.console.print(table)

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar with the time left."""
        columns = (
            TextColumn("{session.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{session.fields[note]}"),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            session = progress.add_task(title, total=total, completed=done, note="")

            def advance(note: str = "") -> None:
                progress.update(session, advance=1, note=note)

            yield advance
