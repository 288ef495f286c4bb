"""Tables of figures for any terminal: where it is narrow, names are wrapped, and columns stand below each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

COSTS = {  # in the order of tables, as a sentence has them; what is not among them is called by its kind
    "flops": "FLOPs",
    "params": "parameters",
    "latency": "latency by the table",
    "size": "bytes",
    "bops": "BOPs",
}
SHORT = {**COSTS, "params": "params", "latency": "latency"}  # at the head of a column
NARROWEST = 12  # what names are wrapped to before columns go below each other
GAP = 2  # between two columns
EDGES = 2


def cost_kinds(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The kinds of cost that any of the rows has a figure of; FLOPs and parameters in any case."""
    rows = list(rows)
    return [kind for kind in COSTS if kind in ("flops", "params") or any(kind in row for row in rows)]


def costs_line(fractions: Mapping[str, float]) -> str:
    """Which parts of the dense network's costs are kept, in a line."""
    return ", ".join(f"{100 * fractions[kind]:.1f} % of the {COSTS[kind]}" for kind in COSTS if kind in fractions)


@dataclass(frozen=True)
class Figures:
    """Rows of numbers with a name in front.

    Attributes:
        title: above it.
        caption: below it.
        columns: what is above the names, and above each number.
        rows: the name and the numbers; a name alone heads the rows that follow.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As one table, or as several below each other, with the names in each."""
        parts = self._parts(options.max_width)
        for number, part in enumerate(parts):
            yield self._table(
                part,
                title=self.title if number == 0 else None,
                caption=self.caption if number == len(parts) - 1 else None,
            )

    def _parts(self, width: int) -> list[list[int]]:
        """Which columns stand side by side."""
        widths = [self._width(column) for column in range(len(self.columns))]
        names = min(widths[0], NARROWEST)
        parts: list[list[int]] = []
        left = 0
        for column in range(1, len(self.columns)):
            if not parts or widths[column] + GAP > left:
                parts.append([])
                left = width - names - EDGES
            parts[-1].append(column)
            left -= widths[column] + GAP
        return parts or [[]]

    def _width(self, column: int) -> int:
        cells = [self.columns[column], *(row[column] for row in self.rows if column < len(row))]
        return max(map(cell_len, cells))

    def _table(self, part: Sequence[int], *, title: str | None, caption: str | None) -> Table:
        plain = [None if text is None else Text(text) for text in (title, caption)]  # names come from anybody's files
        table = Table(title=plain[0], caption=plain[1], box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP, 0, 0))
        table.add_column(Text(self.columns[0]), overflow="fold")
        for column in part:
            table.add_column(Text(self.columns[column]), justify="right", no_wrap=True, min_width=self._width(column))
        for row in self.rows:
            if len(row) == 1:
                table.add_row(Text(row[0]), style="bold")
            elif any(column < len(row) for column in part):
                table.add_row(Text(row[0]), *(Text(row[column]) if column < len(row) else "" for column in part))
        return table
