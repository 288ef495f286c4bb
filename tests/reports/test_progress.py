"""What is shown is what was said: brackets of a name are no markup, colons no emoji, escapes steer nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from secateur.reports.progress import RichReporter, printable

NAME = "[bold]x[/ :x: [/]"


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    RichReporter().say(f"{NAME} \x1b[2J")
    assert capsys.readouterr().out == f"{NAME} \\x1b[2J\n"


def test_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = Table("name", title=f"title {NAME}", caption=f"caption {NAME}")
    table.add_column(f"column {NAME}")
    table.add_row(f"cell {NAME}")
    RichReporter().show(table)
    shown = capsys.readouterr().out
    for place in ("title", "caption", "column", "cell"):
        assert f"{place} {NAME}" in shown


def test_bars() -> None:
    shown = io.StringIO()
    with RichReporter(Console(file=shown, width=120)).bar(f"title {NAME}", 1) as advance:
        advance(f"note {NAME}")
    assert f"title {NAME}" in shown.getvalue()
    assert f"note {NAME}" in shown.getvalue()


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("größer\n\x1b]0;t\x07 \u202e") == "größer\n\\x1b]0;t\\x07 \\u202e"
