"""What a comparison says of its rows: paired differences on the same images, a verdict, a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..reports.tables import SHORT, Figures, cost_kinds
from ..reports.verdicts import standing


def add_gains(rows: list[dict[str, Any]], parts: Sequence[Tensor | None]) -> None:
    """Paired differences of the measure on the test images, with their standard errors on the same images.

    `test_gain_over_uniform` of every row, and `test_lead` of the first row (a plan's, if there is one) over the others.
    """
    uniform = next((i for i, row in enumerate(rows) if row["allocator"] == "uniform"), None)
    for i, row in enumerate(rows):
        if uniform is not None and parts[i] is not None:
            row["test_gain_over_uniform"], row["test_gain_standard_error"] = _difference(rows, parts, i, uniform)
        if i and parts[i] is not None:
            row["test_lead"], row["test_lead_standard_error"] = _difference(rows, parts, 0, i)


def _difference(
    rows: Sequence[dict[str, Any]], parts: Sequence[Tensor | None], one: int, other: int
) -> tuple[float, float]:
    """The difference of two rows and its standard error, in points: of what each image adds (`Objective.influence`)."""
    mine, theirs = parts[one], parts[other]
    assert mine is not None
    assert theirs is not None
    gain = (mine - theirs)[(mine - theirs).isfinite()]
    return rows[one]["test_accuracy"] - rows[other]["test_accuracy"], float(gain.std() / len(gain) ** 0.5)


def verdict(rows: Sequence[dict[str, Any]]) -> str | None:
    """Whether the first row is ahead of the others beyond chance (two standard errors), in a sentence.

    It is ahead of an allocator with several seeds where it is of each; its own other seeds do not count.

    Returns:
        None where there are no test images, or nothing to compare with.
    """
    leads = [
        (row["allocator"], row["test_lead"], row["test_lead_standard_error"])
        for row in rows[1:]
        if "test_lead" in row and row["allocator"] != rows[0]["allocator"]
    ]
    if not leads:
        return None
    ahead, level, behind = standing(leads)
    parts = {"ahead of": ahead, "level with": level, "behind": behind}
    told = "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)
    return f"{rows[0]['allocator']} on the test images, beyond two standard errors: {told}"


def compare_table(rows: Sequence[dict[str, Any]], measure: str) -> Figures:
    """One row an allocator and seed, in the order given; `measure` is the objective's."""
    tuned = any("finetuned_test_accuracy" in row for row in rows)
    kinds = cost_kinds(rows)
    columns = ["allocator", "seed", "cand.", *(SHORT[kind] for kind in kinds)]
    columns += ["search", "test", "over uniform", *(["tuned"] if tuned else [])]
    return Figures(
        "Same cost, same repair, same images",
        f"cand.: candidates a search looked at; {', '.join(SHORT[kind] for kind in kinds)} kept, "
        f"{measure.removesuffix(' %')} (search, test, tuned) and gains in per cent",
        columns,
        [_cells(row, kinds, tuned=tuned) for row in rows],
    )


def _cells(row: dict[str, Any], kinds: Sequence[str], *, tuned: bool) -> list[str]:
    gain = row.get("test_gain_over_uniform")
    return [
        row["allocator"],
        str(row["seed"]),
        str(row["candidates"]),
        *(f"{100 * row[kind]:.1f}" for kind in kinds),
        f"{row['search_accuracy']:.2f}",
        _percent(row["test_accuracy"]),
        "–" if gain is None else f"{gain:+.2f} ± {row['test_gain_standard_error']:.2f}",
        *([_percent(row.get("finetuned_test_accuracy"))] if tuned else []),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
