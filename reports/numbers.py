"""The tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .markup import Markup, element, joined
from .run import Figures, Run

Column = tuple[str, Callable[[Figures], str | None]]


def _columns(measure: str) -> list[Column]:
    return [
        ("seed", lambda row: None if row.seed is None else f"{row.seed}"),
        ("candidates", lambda row: None if row.candidates is None else f"{row.candidates:,}"),
        (f"{measure}, search", _two("search_accuracy")),
        (f"{measure}, test", _two("test_accuracy")),
        ("first row's lead", _with_error("test_lead")),
        ("over uniform", _with_error("test_gain_over_uniform", "test_gain_standard_error")),
        ("change", _with_error("test_change")),
        ("test, fine-tuned", _two("finetuned_test_accuracy")),
        ("FLOPs %", _share("flops")),
        ("FLOPs", _count("flops_count")),
        ("parameters %", _share("params")),
        ("parameters", _count("params_count")),
        ("latency % (table)", _share("latency")),
        ("size %", _share("size")),
        ("bit operations %", _share("bops")),
        ("ms", _two("latency_ms")),
        ("bytes", _count("bytes")),
    ]


def figures_part(run: Run) -> Markup:
    """What was found of every network of a run, and after trainings."""
    summary, measure = run.summary, run.summary.measure
    columns = _columns(measure)
    if run.kind == "compare":
        dense = [("dense", summary.dense)] if summary.dense else []
        named = dense + [(row.allocator, row) for row in summary.rows]
    elif run.kind == "chain":
        named = [(row.stage, row) for row in summary.stages]
    else:
        told = {"dense": summary.dense, "masked, not repaired": summary.masked, "base plan": summary.base,
                "repaired": summary.repaired, "best plan": summary.best, _pruned_name(run): summary.pruned}  # fmt: skip
        named = [(name, row) for name, row in told.items() if row is not None]
    batch = (
        f"; ms: one pass of {summary.latency_batch} images, {summary.latency_runtime}" if summary.latency_batch else ""
    )
    parts = [_figures_table(f"Percentages are of the dense network{batch}", named, columns)]
    if summary.trained_summary:
        trained: list[Column] = [
            ("schedule", lambda row: row.schedule or None),
            ("trainings", lambda row: None if row.trainings is None else f"{row.trainings}"),
            (f"{measure}, test", _two("test_accuracy")),
            ("spread", _two("test_spread")),
            ("behind the first", _with_error("behind")),
            ("seconds", _two("seconds")),
        ]
        rows = [(row.allocator, row) for row in summary.trained_summary]
        parts.append(_figures_table(f"After {summary.finetune_epochs} epochs of the same training", rows, trained))
    return joined((*parts, exports_part(run)))


def exports_part(run: Run) -> Markup:
    """The files that the network was exported to, and what they compute in their runtimes."""
    rows = [
        [f"{place}/{one.file}", precision, f"{one.bytes:,}", _exact(one.parity.largest), _exact(one.parity.mean),
         _exact(one.measure_in_torch, "{:.2f}"), _exact(one.measure_in_runtime, "{:.2f}")]
        for place, export in run.exports.items() for precision, one in export.files.items()
    ]  # fmt: skip
    measure = next((export.measure for export in run.exports.values() if export.measure), run.summary.measure)
    columns = ("file", "numbers", "bytes", "largest difference", "mean difference", f"{measure}, PyTorch")
    caption = "Exported files; differences are over the spread of the network's own outputs"
    return table(caption, [*columns, f"{measure}, runtime"], rows) if rows else Markup()


def _exact(value: float | None, form: str = "{:.1e}") -> str:
    return "–" if value is None else form.format(value).replace("-", "−")


def _pruned_name(run: Run) -> str:
    epochs = run.summary.finetune_epochs
    return f"{run.summary.schedule or 'fine-tuned'}, {epochs} epochs" if epochs else "pruned and repaired"


def _two(key: str) -> Callable[[Figures], str | None]:
    return lambda row: None if (value := getattr(row, key)) is None else f"{value:.2f}".replace("-", "−")


def _share(key: str) -> Callable[[Figures], str | None]:
    return lambda row: None if (value := getattr(row, key)) is None else f"{100 * value:.1f}"


def _count(key: str) -> Callable[[Figures], str | None]:
    return lambda row: None if (value := getattr(row, key)) is None else f"{value:,}"


def _with_error(key: str, error: str | None = None) -> Callable[[Figures], str | None]:
    def cell(row: Figures) -> str | None:
        value, chance = getattr(row, key), getattr(row, error or f"{key}_standard_error")
        told = None if value is None else f"{value:+.2f}".replace("-", "−")
        return told if told is None or chance is None else f"{told} ± {chance:.2f}"

    return cell


def _figures_table(caption: str, named: Sequence[tuple[str, Figures]], columns: Sequence[Column]) -> Markup:
    """A row a network; columns that no row has anything for are left out."""
    if not named:
        return Markup()
    used = [(name, cell) for name, cell in columns if any(cell(row) is not None for _, row in named)]
    rows = [[name, *(cell(row) or "–" for _, cell in used)] for name, row in named]
    return table(caption, ["network", *(name for name, _ in used)], rows)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], class_: str | None = None) -> Markup:
    """A table that scrolls by itself where the page is narrower."""
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", *body),
        class_=class_,
    )
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def all_networks(named: Sequence[tuple[str, Figures]]) -> Markup:
    """The networks of several runs, whatever their measures."""
    return _figures_table("All networks of all runs; percentages are of the dense network", named, _columns("score"))
