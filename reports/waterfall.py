"""Several plans, one after the other: bytes and accuracy behind each, as bars and marks that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .charts import NAMES, figure, row_name
from .markup import Markup, element, joined
from .run import Run
from .svg import TOP, WIDTH, Look, Scale, drawing, mark, number, spread, text, ticks

PACKED = "packed"  # of the formats of an export, the one that is a stage, too
ROW = 26.0
FIGURES = 74.0  # for the numbers right of a row


def waterfall(run: Run) -> Markup:
    """A row for the dense network, for every plan, and for the packed file where the last network was exported to one;
    nothing of what is no chain, and no chart of what was not measured."""
    stages = [(stage.stage, stage.bytes, stage.test_accuracy) for stage in run.summary.stages]
    if not stages:
        return Markup()
    last, _, score = stages[-1]
    stages += [
        (PACKED, file.bytes, None if score is None else file.measure_in_runtime)
        for place, export in run.exports.items() for file in export.files.values()
        if export.format == PACKED and place.startswith(f"{last}/")
    ]  # fmt: skip
    sizes = [(name, size) for name, size, _ in stages if size]
    scores = [(name, score) for name, _, score in stages if score is not None]
    drawn = [bytes_chart(sizes) if sizes else None, scores_chart(scores, run.summary.measure) if scores else None]
    return element("div", *drawn, class_="charts") if any(drawn) else Markup()


def bytes_chart(stages: Sequence[tuple[str, int]]) -> Markup:
    """A bar a stage; its outline is what there was before."""
    first, most = stages[0][1], max(size for _, size in stages)
    scale = Scale(0.0, most, NAMES, WIDTH - FIGURES)
    parts: list[Markup] = []
    for i, ((_, before), (name, size)) in enumerate(pairwise([stages[0], *stages])):
        y = TOP + i * ROW
        tip = f"{name}: {size:,} bytes, {first / size:.1f} times fewer than {stages[0][0]}"
        bars = [
            element("rect", x=NAMES, y=y + 3, width=scale(value) - NAMES, height=ROW - 6, rx=2.0, class_=class_)
            for value, class_ in ((before, "before"), (size, "after"))
        ]
        hit = {"class_": "mark row", "tabindex": "-1", "role": "img", "aria_label": tip}
        parts.append(element("g", element("title", tip), *bars, **hit))
        parts += [row_name(name, y + ROW / 2 + 4), text(WIDTH - 4, y + ROW / 2 + 4, f"{size:,}", "end")]
    told = f"Bytes behind each of {len(stages)} stages"
    drawn = drawing(told, *parts, height=TOP + len(stages) * ROW + 6)
    note = "Weights as stored: 4 bytes a number, few bits packed; of a packed file all of it. Outline: before."
    return figure("Bytes", drawn, note=note)


def scores_chart(stages: Sequence[tuple[str, float]], measure: str) -> Markup:
    """A mark a stage, on the test images."""
    steps = ticks(*spread((score for _, score in stages), least=0.2, most=100.0))
    scale, height = Scale(steps[0], steps[-1], NAMES + 8.0, WIDTH - FIGURES), TOP + len(stages) * ROW + 40.0
    grid: list[Markup] = []
    for tick in steps:
        x = scale(tick)
        grid.append(element("line", x1=x, x2=x, y1=TOP, y2=height - 40.0, class_="grid"))
        grid.append(text(x, height - 22.0, number(tick), "middle"))
    marks: list[Markup] = []
    for i, (name, score) in enumerate(stages):
        y = TOP + (i + 0.5) * ROW
        grid += [row_name(name, y + 4), text(WIDTH - 4, y + 4, f"{score:.2f}", "end")]
        marks.append(mark(scale(score), y, f"{name}: {score:.2f} ({measure})", Look(0, size=5.0)))
    points = " ".join(f"{scale(score):.2f},{TOP + (i + 0.5) * ROW:.2f}" for i, (_, score) in enumerate(stages))
    axis = text(scale((steps[0] + steps[-1]) / 2), height - 4.0, f"{measure}, test images", "middle", "name")
    line = element("polyline", points=points, class_="line thin s0")
    told = f"{measure} on the test images behind each of {len(stages)} stages"
    drawn = drawing(told, element("g", *grid, axis, aria_hidden="true"), joined((line, *marks)), height=height)
    return figure(f"{measure.removesuffix(' %')} on the test images", drawn)
