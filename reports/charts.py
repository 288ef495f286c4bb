"""The charts of a report: layers before and after, the search, accuracy against cost, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import sqrt
from typing import Any

from ..pruners.plan import LayerPlan
from .markup import Markup, element, joined
from .run import KINDS, Epoch, Figures
from .svg import TOP, WIDTH, Look, Panel, Scale, drawing, look, mark, number, spread, swatch, text, ticks

NAMES = 150.0  # for the layers' names, in a chart that has them
MOST_BESIDE = 5  # hand-set plans in one chart
LINEAR = 16  # times as many units as the fewest, up to which widths are drawn in proportion


def figure(title: str, drawn: Markup, *, legend: Sequence[tuple[Look, str, bool]] = (), note: object = None) -> Markup:
    """A chart with its title, its signs (a look, a name, whether a line) and what is to be known of it."""
    signs = [element("li", swatch(style, line=line), element("span", name)) for style, name, line in legend]
    below = element("p", note, class_="note") if note is not None else None
    return element(
        "figure",
        element("figcaption", title),
        drawn,
        element("ul", *signs, class_="legend") if signs else None,
        below,
    )


@dataclass(frozen=True)
class Beside:
    """A plan in a chart of layers: what it is called, and how many units of each layer it keeps."""

    name: str
    kept: Sequence[int]


def layers_chart(layers: Sequence[LayerPlan], unit: str) -> Markup:
    """The network as a stack: every layer as wide as it was, and in it what is kept."""
    most, fewest = max(layer.units for layer in layers), min(layer.units for layer in layers)
    proportional = most <= LINEAR * fewest
    row, middle, room = _row(len(layers)), NAMES + (WIDTH - NAMES - 84.0) / 2, WIDTH - NAMES - 84.0
    parts: list[Markup] = []
    for i, layer in enumerate(layers):
        y = TOP + i * row
        dense, kept = (_width(units, most, room, proportional) for units in (layer.units, layer.kept))
        tip = f"{layer.name}: {layer.kept:,} of {layer.units:,} {unit} kept, {100 * layer.sparsity:.0f} % removed"
        bars = [
            element("rect", x=middle - wide / 2, y=y + 2, width=wide, height=row - 4, rx=2.0, class_=name)
            for wide, name in ((dense, "before"), (kept, "after"))
            if wide > 0
        ]
        hit = {"class_": "mark row", "tabindex": "-1", "role": "img", "aria_label": tip}
        parts.append(element("g", element("title", tip), *bars, **hit))
        parts.append(row_name(layer.name, y + row / 2 + 4))
        parts.append(text(WIDTH - 4, y + row / 2 + 4, f"{layer.kept:,} of {layer.units:,}", "end"))
    told = f"The {len(layers)} layers from input to output, {unit} before and after"
    drawn = drawing(told, *parts, height=TOP + len(layers) * row + 6)
    scale = "in proportion to" if proportional else "to the root of"
    note = f"Input at the top. Outline: before; filled: kept. Widths are {scale} the number of {unit}."
    return figure(f"Before and after: {unit} kept", drawn, note=note)


def beside_chart(layers: Sequence[LayerPlan], name: str, others: Sequence[Beside]) -> Markup:
    """What the plan keeps of every layer, in per cent, and what others keep at the same cost."""
    if not others:
        return joined(())
    row = _row(len(layers))
    height = TOP + len(layers) * row + 40.0
    shown = [Beside(name, [layer.kept for layer in layers]), *others[:MOST_BESIDE]]
    steps = ticks(0.0, max(100.0 * k / layer.units for one in shown for k, layer in zip(one.kept, layers, strict=True)))
    scale = Scale(steps[0], steps[-1], NAMES + 8.0, WIDTH - 16.0)
    grid: list[Markup] = []
    for tick in steps:
        x = scale(tick)
        grid.append(element("line", x1=x, x2=x, y1=TOP, y2=height - 40.0, class_="grid"))
        grid.append(text(x, height - 22.0, number(tick), "middle"))
    grid.append(
        text(scale((steps[0] + steps[-1]) / 2), height - 4.0, "kept, in per cent of the layer", "middle", "name")
    )
    middles = [TOP + (i + 0.5) * row for i in range(len(layers))]
    names = [row_name(layer.name, y + 4) for layer, y in zip(layers, middles, strict=True)]
    series: list[Markup] = []
    for i in reversed(range(len(shown))):  # the plan on top of the others
        style = Look(0, size=5.0) if i == 0 else Look(look(i).colour, look(i).shape, hollow=True, dash=look(i).dash)
        places = [
            (scale(100 * kept / layer.units), y, f"{shown[i].name}, {layer.name}: {kept:,} of {layer.units:,}")
            for kept, layer, y in zip(shown[i].kept, layers, middles, strict=True)
        ]
        line = " ".join(f"{x:.2f},{y:.2f}" for x, y, _ in places)
        class_ = f"line {'' if i == 0 else 'thin '}s{style.colour}"
        series.append(element("polyline", points=line, class_=class_, stroke_dasharray=style.dash))
        series += [mark(x, y, tip, style) for x, y, tip in places]
    told = f"Per cent kept of each of {len(layers)} layers by {', '.join(plan.name for plan in shown)}"
    drawn = drawing(told, element("g", *grid, *names, aria_hidden="true"), *series, height=height)
    legend = [
        (Look(0) if i == 0 else Look(look(i).colour, look(i).shape, hollow=True), plan.name, False)
        for i, plan in enumerate(shown)
    ]
    return figure("Beside other plans at the same budget", drawn, legend=legend)


def _row(layers: int) -> float:
    return 22.0 if layers <= 30 else 18.0


def _width(units: int, most: int, room: float, proportional: bool) -> float:
    return room * (units / most if proportional else sqrt(units / most))


def row_name(name: str, y: float) -> Markup:
    """Left of a row of a chart."""
    short = name if len(name) <= 22 else f"…{name[-21:]}"
    return text(NAMES - 6.0, y, short, "end")


def course_chart(episodes: Sequence[Mapping[str, Any]], asked: float | None, note: str | None) -> Markup:
    """The quality of every episode's plan and the best so far; those on other budgets than the one asked recede."""
    ours = [e for e in episodes if asked is None or e.get("budget") in (None, asked)]
    others = [e for e in episodes if e not in ours]
    if not ours:
        return joined(())
    panel = _panel("Quality of every episode's plan, and the best so far", episodes, "quality", "quality")
    plain, away, best = Look(5, size=3.0), Look(5, "diamond", hollow=True, size=2.5), Look(1)
    for style, group in ((away, others), (plain, ours)):
        for e in group:
            panel.mark(e["episode"], e["quality"], _episode_tip(e), style)
    so_far = list(accumulate((e["quality"] for e in ours), max))
    panel.steps([(e["episode"], value) for e, value in zip(ours, so_far, strict=True)], best)
    if ours[0]["episode"] == 0:
        panel.line([(episodes[0]["episode"], ours[0]["quality"]), (episodes[-1]["episode"], ours[0]["quality"])],
                   Look(2, dash="2 3"))  # fmt: skip
    top = max(range(len(ours)), key=lambda i: ours[i]["quality"])
    panel.mark(ours[top]["episode"], ours[top]["quality"], f"best: {_episode_tip(ours[top])}", Look(1, size=5.0))
    legend = [(plain, "episode", False), (best, "best so far", True), (Look(2, dash="2 3"), "base plan", True)]
    legend += [(away, "episode on another budget", False)] if others else []
    return figure("Quality of the plans", panel.drawn(), legend=legend, note=note)


def number_chart(episodes: Sequence[Mapping[str, Any]], title: str, values: Sequence[float], note: str) -> Markup:
    """A number of every episode, with a running mean."""
    records = [{**e, "value": value} for e, value in zip(episodes, values, strict=True)]
    panel = _panel(f"{title} of every episode", records, "value", title)
    for record in records:
        tip = f"episode {record['episode']}: {title} {number(record['value'])}"
        panel.mark(record["episode"], record["value"], tip, Look(5, size=3.0))
    window = max(1, min(20, len(values) // 5))
    means = [sum(values[i - window : i]) / window for i in range(window, len(values) + 1)]
    numbers = [record["episode"] for record in records][window - 1 :]
    panel.line(list(zip(numbers, means, strict=True)), Look(0))
    legend = [(Look(5), "episode", False), (Look(0), f"mean of {window}", True)]
    return figure(f"{title[:1].upper()}{title[1:]}", panel.drawn(), legend=legend, note=note)


def candidates_chart(candidates: Sequence[Mapping[str, Any]]) -> Markup:
    """The best so far of every search, against how many candidates it has looked at."""
    searches: dict[str, list[float]] = {}
    for record in candidates:
        searches.setdefault(f"{record['allocator']} {record['seed']}", []).append(record["quality"])
    best = {name: list(accumulate(values, max)) for name, values in searches.items()}
    longest = max(map(len, best.values()))
    values = [value for found in best.values() for value in found]
    told = f"Best quality so far of {len(best)} searches"
    panel = Panel(told, (0.5, longest + 0.5), spread(values, least=1e-3), "candidates", "quality", whole=True)
    for i, (name, found) in enumerate(best.items()):
        panel.steps(list(enumerate(found, 1)), look(i))
        for count, value in enumerate(found, 1):
            if count == len(found) or count == 1 or value != found[count - 2]:
                panel.mark(count, value, f"{name}: {number(value)} after {count} candidates", look(i))
    legend = [(look(i), name, False) for i, name in enumerate(best)]
    return figure("Other searches: best so far", panel.drawn(), legend=legend)


def leads_chart(rows: Sequence[Figures], measure: str) -> Markup:
    """The first row's lead over every other one, from two standard errors below to two above."""
    known = [row for row in rows[1:] if row.test_lead is not None and row.test_lead_standard_error is not None]
    if not known:
        return joined(())
    leads = [(row.test_lead or 0.0, row.test_lead_standard_error or 0.0) for row in known]
    low, high = spread(
        [0.0, *(lead - 2 * error for lead, error in leads), *(lead + 2 * error for lead, error in leads)]
    )
    steps = ticks(low, high)
    height = TOP + len(known) * 26.0 + 40.0
    scale = Scale(steps[0], steps[-1], NAMES, WIDTH - 20.0)
    grid: list[Markup] = []
    for tick in steps:
        x, class_ = scale(tick), "zero" if tick == 0 else "grid"
        grid.append(element("line", x1=x, x2=x, y1=TOP, y2=height - 40.0, class_=class_))
        grid.append(text(x, height - 22.0, number(tick), "middle"))
    axis = f"points of {measure.removesuffix(' %')} by which {rows[0].allocator} leads"
    grid.append(text((NAMES + WIDTH) / 2, height - 4.0, axis, "middle", "name"))
    series: list[Markup] = []
    for i, (row, (lead, error)) in enumerate(zip(known, leads, strict=True)):
        y = TOP + (i + 0.5) * 26.0
        grid.append(row_name(f"{row.allocator}, seed {row.seed}", y + 4.0))
        ends = f"M{scale(lead - 2 * error):.2f} {y:.2f}H{scale(lead + 2 * error):.2f}"
        series.append(element("path", d=ends, class_="line s0"))
        tip = f"{rows[0].allocator} against {row.allocator}, seed {row.seed}: {lead:+.2f} ± {error:.2f} points"
        series.append(mark(scale(lead), y, tip, Look(0, size=4.5)))
    drawn = drawing(axis, element("g", *grid, aria_hidden="true"), *series, height=height)
    note = "Lines are two standard errors to each side; where one crosses zero the two plans are not told apart."
    return figure(f"{rows[0].allocator} against every other plan, on the same test images", drawn, note=note)


@dataclass(frozen=True)
class Cost:
    """A network in a chart of accuracy against cost.

    Attributes:
        series: that it is drawn as one of.
        tip: what its mark says.
        cost: in per cent of the dense network's.
        accuracy: the measure.
        error: one standard error of its difference from another network, where that is known.
        quick: whether only the search evaluated it, with less repair than a finished plan gets.
    """

    series: str
    tip: str
    cost: float
    accuracy: float
    error: float | None = None
    quick: bool = False


def pareto_chart(points: Sequence[Cost], kind: str, measure: str, split: str, of: str = "") -> Markup:
    """Accuracy against cost; the line joins those that no other one beats in both, but for quick evaluations."""
    names = list(dict.fromkeys(point.series for point in points))
    most = [point.accuracy + (point.error or 0.0) for point in points]
    least = [point.accuracy - (point.error or 0.0) for point in points]
    costs = spread((point.cost for point in points), least=1.0)
    named = KINDS.get(kind, kind)
    panel = Panel(
        f"{measure} on the {split} images against {named} kept, {len(points)} networks",
        costs, spread([*most, *least], least=0.2, most=100.0), f"{named} kept, per cent", f"{measure}, {split} images",
        height=290.0,
    )  # fmt: skip
    front = pareto_front([point for point in points if not point.quick])
    if front:
        panel.steps([(point.cost, point.accuracy) for point in front], Look(5, dash="2 3"))
    for point in points:
        style = look(names.index(point.series))
        if point.error:
            panel.whisker(point.cost, point.accuracy - point.error, point.accuracy + point.error, style)
        panel.mark(point.cost, point.accuracy, point.tip, style)
    legend = [(look(i), name, False) for i, name in enumerate(names)]
    legend += [(Look(5, dash="2 3"), "best at that cost or less", True)] if front else []
    error = any(point.error for point in points)
    note = "Whiskers: one standard error of the difference from the first row, on the same images." if error else None
    return figure(
        f"{of}accuracy against {named}".capitalize() if not of else f"{of}: accuracy against {named}",
        panel.drawn(),
        legend=legend,
        note=note,
    )


def pareto_front(points: Sequence[Cost]) -> list[Cost]:
    """Those that are better than all that cost no more, cheapest first."""
    front: list[Cost] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def training_charts(epochs: Sequence[Epoch], name: str, measure: str) -> list[Markup]:
    """Loss, score on the search images and learning rate of a fine-tuning, epoch by epoch."""
    told = {"loss": "loss", "score": f"{measure}, search images", "learning_rate": "learning rate"}
    charts = []
    for key, label in told.items():
        values = [(i, value) for i, epoch in enumerate(epochs, 1) if (value := getattr(epoch, key)) is not None]
        if not values:
            continue
        heights = spread((value for _, value in values), least=1e-6)
        panel = Panel(f"{label} of every epoch", (0.5, len(epochs) + 0.5), heights, "epoch", label, whole=True)
        panel.line(values, Look(0))
        for i, (before, after) in enumerate(pairwise(epochs), 1):
            if before.round != after.round:
                x = panel.at_x(i + 0.5)
                panel.parts.append(element("line", x1=x, x2=x, y1=TOP + 16, y2=panel.height - 40, class_="rule"))
        for i, value in values:
            panel.mark(i, value, f"epoch {i}: {label} {number(value)}", Look(0, size=3.5))
        charts.append(figure(f"{name}{label[:1].upper()}{label[1:]}", panel.drawn()))
    return charts


def _panel(label: str, episodes: Sequence[Mapping[str, Any]], key: str, name: str) -> Panel:
    first, last = episodes[0]["episode"], episodes[-1]["episode"]
    values = [e[key] for e in episodes]
    ends = spread((first, last), least=0.5)
    return Panel(label, ends, spread(values, least=1e-3), "episode", name, whole=True)


def _episode_tip(episode: Mapping[str, Any]) -> str:
    return (
        f"episode {episode['episode']}: quality {number(episode['quality'])}, score {episode['accuracy']:.2f}, "
        f"{100 * episode['flops']:.1f} % of the FLOPs"
    )
