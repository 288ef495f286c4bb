"""What is shown is what was said: brackets of a name are no markup, colons no emoji, escapes steer nothing."""

from __future__ import annotations

import contextlib
import io
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.table import Table

from secateur.commands.apply import figures_table
from secateur.commands.compared import compare_table
from secateur.commands.correlate import PROXIES, TARGETS, correlation_table, correlations
from secateur.commands.sensitivity import sensitivity_table
from secateur.commands.trained import trained_table
from secateur.reports import progress
from secateur.reports.progress import RichReporter, printable
from secateur.reports.tables import Figures

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


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(text: str) -> set[str]:
    """Without what steers a terminal."""
    return set(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", " ", text).split())


@pytest.mark.parametrize("force", [True, False])
def test_bars(force: bool) -> None:
    console = terminal(120) if force else Console(file=io.StringIO(), width=120)
    with RichReporter(console).bar(f"title {NAME}", 1) as advance:
        advance(f"note {NAME}")
    assert f"title {NAME}" in shown(console)
    assert f"note {NAME}" in shown(console)


def test_a_bar_inside_another_is_a_line_of_the_same_display(monkeypatch: pytest.MonkeyPatch) -> None:
    displays: list[progress.Progress] = []

    class Counted(progress.Progress):
        def start(self) -> None:  # of a console without room for a second one, as rich's are before 14.1
            assert not any(other.live.is_started for other in displays)
            displays.append(self)
            super().start()

    monkeypatch.setattr(progress, "Progress", Counted)
    console = terminal(120)
    reporter = RichReporter(console)
    with reporter.bar("trained", 2) as outer:
        for number in range(2):
            with contextlib.suppress(KeyboardInterrupt), reporter.bar(f"epochs-of-{number}", 3) as inner:
                inner()
                raise KeyboardInterrupt
            outer()
        assert [task.description for task in displays[0].tasks] == ["trained"]
    assert {"trained", "2/2", "epochs-of-0", "epochs-of-1", "1/3"} <= words(shown(console))
    with reporter.bar("later", 1) as advance:
        advance()
    assert len(displays) == 2


NOTE = "reward +0.123 quality -0.456 best +0.789 acc 82.1% FLOPs 49.9%"


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_narrow_terminal_cuts_no_number_of_a_bar(width: int) -> None:
    console = terminal(width)
    with RichReporter(console).bar("search", 48000, 12344) as advance:
        advance(NOTE)
    assert {"search", "12345/48000", *NOTE.split()} <= words(shown(console))
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(console)).splitlines()) <= width


def test_in_a_pipe_a_bar_is_plain_lines_now_and_then_and_always_the_last() -> None:
    console = Console(file=io.StringIO(), width=40)
    with RichReporter(console, every=0.05).bar("fine-tune", 400, 100) as advance:
        for step in range(100, 400):
            time.sleep(0.001)
            advance(f"loss {step} \x1b[2J")
    lines = shown(console).splitlines()
    assert 2 < len(lines) < 60  # of 300 steps
    assert all(
        re.fullmatch(r"fine-tune \d+/400 \(\d+:\d\d:\d\d(, \S+ left)?\) loss \d+ \\x1b\[2J", line) for line in lines
    )
    counts = [int(line.split()[1].split("/")[0]) for line in lines]
    assert counts == sorted(set(counts))
    assert counts[-1] == 400
    assert "\x1b" not in shown(console)
    assert "\r" not in shown(console)


def test_in_a_pipe_a_bar_that_stands_still_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ALIVE", 0.1)
    console = Console(file=io.StringIO(), width=40)
    with RichReporter(console, every=0.02).bar("measure", 4):
        time.sleep(0.5)
    lines = shown(console).splitlines()
    assert 2 <= len(lines) <= 7
    assert {line.split(" (")[0] for line in lines} == {"measure 0/4"}


def test_a_short_bar_in_a_pipe_is_one_line() -> None:
    for steps in (0, 3):
        console = Console(file=io.StringIO(), width=40)
        with RichReporter(console).bar("re-rank", 3) as advance:
            for _ in range(steps):
                advance("acc 91.2%")
        assert len(shown(console).splitlines()) == 1
        assert shown(console).startswith(f"re-rank {steps}/3 (0:00:00)")


def compared(**more: Any) -> dict[str, Any]:
    return {
        "allocator": "simulated_annealing",
        "seed": 11,
        "candidates": 12345,
        "flops": 0.499,
        "params": 0.5123,
        "search_accuracy": 100.0,
        "test_accuracy": 89.97,
        "test_gain_over_uniform": -13.09,
        "test_gain_standard_error": 0.87,
        **more,
    }


def trained(schedule: str, **more: Any) -> dict[str, Any]:
    costs = {"images": 250_000, "dense_images": 1_300, "search_images": 66_000, "seconds": 1234.5}
    row = {"allocator": "simulated_annealing", "schedule": schedule, "trainings": 3, "test_spread": 0.78}
    return {**row, "test_accuracy": 92.35, **costs, **more}


def correlated() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = [{key: float(rng.normal()) for key in (*PROXIES, *TARGETS)} for _ in range(7)]
    return {"coefficients": correlations(rows), "proxies": PROXIES, "targets": TARGETS}


TABLES: dict[str, RenderableType] = {
    "apply": figures_table(
        "The plan, applied",
        {
            name: {"test_accuracy": 93.0 + i / 7, "flops": 1.0, "params": 0.51, "latency_ms": 1234.56 + i}
            for i, name in enumerate(("dense", "masked", "pruned"))
        },
        {"dense": "dense", "masked": "masked, nothing repaired", "pruned": "pruned while trained, 100 epochs"},
        "ms: one pass of 64 images",
        "top-1 %",
    ),
    "compare": compare_table([compared(), compared(test_gain_over_uniform=None, test_accuracy=None)], "top-1 %"),
    "compare, all columns": compare_table([compared(latency=0.777, finetuned_test_accuracy=91.23)], "top-1 %"),
    "compare, trained": trained_table(
        [trained("scratch_b"), trained("one_shot", behind=12.34, behind_standard_error=0.56, test_accuracy=91.23)],
        "top-1 %",
    ),
    "correlate": correlation_table(correlated()),
    "sensitivity": sensitivity_table(
        [
            {"layer": "features.denseblock1.layer1", "criterion": criterion, "asked": asked, "error": 99.99 * asked}
            for criterion in ("max_response", "lasso")
            for asked in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.9375)
        ]
    ),
}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_every_table_is_whole_at_every_width(name: str, width: int) -> None:
    table = TABLES[name]
    assert isinstance(table, Figures)
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    lines = shown(console).splitlines()
    assert max(map(len, lines)) <= width
    joined = "\n".join(lines)
    for row in table.rows:
        for cell in row[1:]:
            assert f" {cell} " in joined.replace("\n", " \n") or f" {cell}\n" in joined, (cell, joined)
        for word in row[0].split():
            assert word in joined or len(word) > 12
    for column in table.columns:
        assert column in joined
    assert table.title.split()[0] in joined
    # as often as there are, not only once for several
    for cell in {cell for row in table.rows for cell in row[1:] if re.search(r"\d", cell)}:
        often = sum(row[1:].count(cell) for row in table.rows)
        assert len(re.findall(rf"(?<![\d.+-]){re.escape(cell)}(?![\d.])", joined)) >= often


@settings(max_examples=30)
@given(
    width=st.integers(30, 120),
    rows=st.lists(
        st.tuples(
            st.text("ab c", min_size=1, max_size=40), st.lists(st.integers(-(10**9), 10**9), min_size=4, max_size=4)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_no_number_is_cut(width: int, rows: list[tuple[str, list[int]]]) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(Figures("t", "c", ("name", *"wxyz"), [[name, *map(str, numbers)] for name, numbers in rows]))
    found = re.findall(r"-?\d+", shown(console))
    assert sorted(found) == sorted(str(number) for _, numbers in rows for number in numbers)


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("größer\n\x1b]0;t\x07 \u202e") == "größer\n\\x1b]0;t\\x07 \\u202e"
