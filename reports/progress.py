"""What a person watches while work goes on. The base class says nothing: for callers in Python, and for tests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[str], None]

EVERY = 10.0  # seconds between two lines of a bar that is no terminal's, while it moves
ALIVE = 60.0  # seconds after which one that does not move says so
BLOCKS = 8  # of a terminal's bar


def _ignore(note: str = "") -> None:
    """Advance no bar."""


def printable(text: str) -> str:
    """The text with whatever would steer a terminal written as an escape."""
    return "".join(part if part.isprintable() or part == "\n" else repr(part)[1:-1] for part in text)


class Reporter:
    """Takes lines, tables and progress, and drops them."""

    def say(self, text: str) -> None:
        """One line."""

    def show(self, table: RenderableType) -> None:
        """A table."""

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar; the yielded function advances it by one and sets the text behind it."""
        yield _ignore


class RichReporter(Reporter):
    """Draws on a terminal; elsewhere, in a pipe or a log file, bars are lines now and then."""

    def __init__(self, console: Console | None = None, *, every: float = EVERY):
        self.console = console or Console(markup=False, emoji=False)  # names come from files of anybody
        self._every = every
        self._drawn: Progress | None = None

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(Text(printable(text)), soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """A table."""
        self.console.print(table, markup=False, emoji=False)

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar with the time left."""
        if not self.console.is_terminal:
            with _Lines(self.say, title, total, done, self._every) as lines:
                yield lines.advance
            return
        with self._progress() as progress:
            task = progress.add_task(title, total=total, completed=done, note="")

            def advance(note: str = "") -> None:
                progress.update(task, advance=1, note=printable(note))

            try:
                yield advance
            finally:
                if len(progress.tasks) > 1:
                    progress.refresh()
                    progress.remove_task(task)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
        """What draws: a bar inside another is a second line of it, for a terminal has one such display at a time."""
        if self._drawn is not None:
            yield self._drawn
            return
        with Progress(_Line(), console=self.console, refresh_per_second=4) as self._drawn:
            try:
                yield self._drawn
            finally:
                self._drawn = None


class _Line(ProgressColumn):
    """All of a bar as one text, which a narrow terminal wraps between words: no number is cut."""

    def __init__(self) -> None:
        super().__init__()
        self._count, self._left = MofNCompleteColumn(), TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Title, bar, count, time left and note."""
        full = round(BLOCKS * task.percentage / 100)
        drawn = Text("━" * full, style="bar.complete").append("━" * (BLOCKS - full), style="bar.back")
        parts = [Text(task.description), drawn, self._count.render(task), self._left.render(task)]
        return Text(" ", overflow="fold").join([*parts, Text(task.fields["note"])])


class _Lines:
    """A bar as plain lines: at most one every so many seconds while it moves, and always the last."""

    def __init__(self, say: Callable[[str], None], title: str, total: int, done: int, every: float):
        self._say, self._title, self._total, self._every = say, title, total, every
        self._first = self._done = done
        self._note = ""
        self._began = time.monotonic()
        self._said: tuple[int, float] | None = None  # of the last line: how far, and when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def advance(self, note: str = "") -> None:
        """By one."""
        self._note = note
        self._done += 1

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        if self._said is None or self._said[0] != self._done or self._done == self._first:
            self._line()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            done, when = self._said or (self._first, self._began)
            if self._done != done or time.monotonic() - when >= ALIVE:
                self._line()

    def _line(self) -> None:
        done, now = self._done, time.monotonic()
        spent = now - self._began
        left = (self._total - done) * spent / (done - self._first) if done > self._first else None
        clock = _clock(spent) if left is None or done >= self._total else f"{_clock(spent)}, {_clock(left)} left"
        self._said = done, now
        self._say(f"{self._title} {done}/{self._total} ({clock}) {self._note}".rstrip())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
