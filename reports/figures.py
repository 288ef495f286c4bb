"""Figures: the plan, the course of a search, the comparison; made to be looked at, or written to a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from ..pruners.plan import RatioPlan
from ..storage.files import replacing
from .tables import COSTS, costs_line

BLUE, GREY, ORANGE = "#2a6fbb", "#b9c0c8", "#d9822b"

LOOKS: dict[str, dict[str, Any]] = {  # of criteria: the baselines recede, and none looks different in another figure
    "first_k": {"color": "#7d858d", "linestyle": "--"},
    "random": {"color": GREY, "linestyle": ":"},
    "max_response": {"color": "#b23a48"},
    "l1": {"color": "#6a9a5b"},
    "lasso": {"color": ORANGE},
    "obs": {"color": BLUE},
}
OTHERS = ["#7b5aa6", "#2a9d8f", "#c77dba", "#8c6d46", "#3d3d3d", "#9db528"]


class Drawing(Figure):
    """A figure without a window: a notebook shows it as it is, and names in it are never formulas."""

    def draw(self, renderer: Any) -> None:
        """Draw; a layer or config may be called $x: it is a name."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """What IPython shows, whatever pyplot's backend."""
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def plan_figure(plan: RatioPlan, path: Path) -> Path:
    """`plan_drawing` as a file."""
    return _save(plan_drawing(plan), path)


def plan_drawing(plan: RatioPlan) -> Drawing:
    """Sparsity per layer as bars, with the units kept on top."""
    names = [layer.name for layer in plan.layers]
    figure, axes = _figure(max(6.0, 0.32 * len(names) + 2.0), 4.2)
    axes.bar(range(len(names)), [layer.sparsity for layer in plan.layers], color=BLUE)
    for i, layer in enumerate(plan.layers):
        axes.text(i, layer.sparsity + 0.01, f"{layer.kept}", ha="center", va="bottom", fontsize=7, color="#444444")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylim(0.0, 1.08)
    axes.set_ylabel(f"sparsity (on top: {plan.unit} kept)")
    axes.set_title(
        f"{plan.architecture}, {plan.provenance.allocator}: {costs_line(plan.cost)}",
        fontsize=9,
    )
    return figure


def quality_figure(qualities: Sequence[float], path: Path) -> Path:
    """`quality_drawing` as a file."""
    return _save(quality_drawing(qualities), path)


def quality_drawing(qualities: Sequence[float]) -> Drawing:
    """The quality of every episode's plan, a running mean, and the best so far."""
    values = np.asarray(qualities, dtype=np.float64)
    window = max(1, min(20, len(values) // 5))
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    figure, axes = _figure(6.5, 4.0)
    axes.plot(values, ".", color=GREY, markersize=4, label="episode")
    axes.plot(np.arange(len(mean)) + window - 1, mean, color=BLUE, label=f"mean of {window}")
    axes.plot(np.maximum.accumulate(values), color=ORANGE, label="best so far")
    axes.axhline(values[0], color="black", linewidth=0.8, linestyle=":", label="base plan (episode 0)")
    axes.set_xlabel("episode")
    axes.set_ylabel("quality")
    axes.legend(fontsize=8)
    return figure


def comparison_figure(rows: Sequence[Mapping[str, Any]], plans: Sequence[RatioPlan], path: Path, measure: str) -> Path:
    """`comparison_drawing` as a file."""
    return _save(comparison_drawing(rows, plans, measure), path)


def comparison_drawing(rows: Sequence[Mapping[str, Any]], plans: Sequence[RatioPlan], measure: str) -> Drawing:
    """The objective's measure on the search and the test split, and every plan's sparsity along the network."""
    labels = [_label(row, rows) for row in rows]
    figure = Drawing(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
    marks = np.arange(len(rows))
    left.barh(marks + 0.2, [row["search_accuracy"] for row in rows], 0.38, color=GREY, label="search")
    if any(row["test_accuracy"] is not None for row in rows):
        left.barh(marks - 0.2, [_number(row["test_accuracy"]) for row in rows], 0.38, color=BLUE, label="test")
    if any(row.get("finetuned_test_accuracy") is not None for row in rows):
        tuned = [_number(row.get("finetuned_test_accuracy")) for row in rows]
        left.plot(tuned, marks - 0.2, "D", color=ORANGE, markersize=4, label="test, fine-tuned")
    values = [row[key] for row in rows for key in ("search_accuracy", "test_accuracy") if row[key] is not None]
    left.set_xlim(max(0.0, min(values) - 3.0), 100.0 if max(values) > 97 else max(values) + 3.0)
    left.set_yticks(marks, labels)
    left.invert_yaxis()
    left.set_xlabel(f"{measure}, repaired")
    left.legend(fontsize=7, loc="lower right")
    for label, plan in zip(labels, plans, strict=True):
        right.plot([layer.sparsity for layer in plan.layers], marker=".", label=label)
    right.set_xlabel("layer")
    right.set_ylabel("sparsity")
    right.set_ylim(0.0, 1.0)
    right.legend(fontsize=7)
    return figure


def sweep_figure(tree: Mapping[str, Any], path: Path) -> Path:
    """`sweep_drawing` as a file."""
    return _save(sweep_drawing(tree), path)


def sweep_drawing(tree: Mapping[str, Any]) -> Drawing:
    """Accuracy against cost: a line an allocator, a mark a plan, the Pareto front ringed. Takes what `sweep.json`
    holds."""
    figure, axes = _figure(6.5, 4.4)
    kind, colours = tree["kind"], [BLUE, ORANGE, *OTHERS]
    for number, name in enumerate(dict.fromkeys(row["allocator"] for row in tree["rows"])):
        rows = [row for row in tree["rows"] if row["allocator"] == name]
        colour = colours[number % len(colours)]
        budgets = sorted({row["budget"] for row in rows})
        means = [[row for row in rows if row["budget"] == budget] for budget in budgets]
        axes.plot(
            [100 * np.mean([row[kind] for row in group]) for group in means],
            [np.mean([row["reached"] for row in group]) for group in means],
            color=colour,
            label=name,
        )
        axes.plot([100 * row[kind] for row in rows], [row["reached"] for row in rows], ".", color=colour)
    front = sorted((100 * row[kind], row["reached"]) for row in tree["rows"] if row["front"])
    axes.plot(*zip(*front, strict=True), "o", fillstyle="none", color="#444444", markersize=9, label="Pareto front")
    dense = tree["dense"]["accuracy"]
    axes.axhline(dense, color="black", linewidth=0.8, linestyle=":", label=f"dense, {dense:.1f}")
    trained = f"after {tree['finetune_epochs']} epochs" if tree["finetune_epochs"] else "repaired"
    axes.set_xlabel(f"{ {'flops': 'FLOPs', 'params': 'parameters', 'latency': 'latency by the table'}[kind] } kept, %")
    axes.set_ylabel(f"{tree['measure']} on {tree['dense']['images']} images, {trained}")
    axes.set_title(tree["config"], fontsize=9)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=7)
    return figure


def cost_drawing(
    series: Mapping[str, Sequence[tuple[float, float]]], front: Sequence[tuple[float, float]], cost: str, score: str
) -> Drawing:
    """Accuracy against cost.

    Args:
        series: name → (cost, accuracy) of its networks.
        front: those that are better than all that cost no more, cheapest first.
        cost: what it is called.
        score: the same of the accuracy.
    """
    figure, axes = _figure(6.5, 4.4)
    colours = [BLUE, ORANGE, *OTHERS]
    for number, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), "o", color=colours[number % len(colours)], markersize=4, label=name)
    if front:
        axes.step(*zip(*front, strict=True), where="post", color="#444444", linewidth=0.8, label="best at that cost")
    axes.set_xlabel(cost)
    axes.set_ylabel(score)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=7)
    return figure


def training_drawing(values: Mapping[str, Sequence[float]]) -> Drawing:
    """Name → what it was after every epoch: a panel each, below each other."""
    figure = Drawing(figsize=(6.5, 2.2 * len(values) + 0.4), layout="constrained")
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, found) in zip(panels, values.items(), strict=True):
        axes.plot(range(1, len(found) + 1), found, color=BLUE, marker=".")
        axes.set_ylabel(name, fontsize=9)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[-1].set_xlabel("epoch")
    return figure


def sensitivity_figure(tree: Mapping[str, Any], path: Path) -> Path:
    """Error against sparsity: a panel a layer, a curve a criterion. Takes what `sensitivity.json` holds."""
    layers, criteria = tree["layers"], tree["criteria"]
    others = iter(OTHERS * len(criteria))
    looks = {name: LOOKS[name] if name in LOOKS else {"color": next(others)} for name in criteria}
    figure = Drawing(figsize=(3.2 * len(layers) + 1.4, 4.0), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=True):
        for name in criteria:
            points = [p for p in tree["points"] if (p["layer"], p["criterion"]) == (layer["name"], name)]
            marks = {0.0: 0.0, **{p["sparsity"]: 100.0 * p["error"] for p in points}}  # nothing cut, nothing lost
            axes.plot(marks.keys(), marks.values(), marker=".", label=name, **looks[name])
        axes.set_title(f"{layer['name']} ({layer['units']} {tree['unit']})", fontsize=9)
        axes.set_xlabel("sparsity", fontsize=9)
        axes.set_xlim(0.0, 1.0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylim(0.0, 105.0 * max(point["error"] for point in tree["points"]) or 1.0)
    panels[0].set_ylabel("error of the output, 1 − R², in per cent", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    repair = "repaired by least squares" if tree["repair"] == "gram" else "nothing repaired"
    figure.suptitle(f"{tree['config']}: one layer cut, {repair}; {tree['images']['search']} search images", fontsize=9)
    return _save(figure, path)


def filters_figure(tiles: NDArray[np.float64], tree: Mapping[str, Any], path: Path) -> Path:
    """Filters in the order of removal, under each its colour selectivity and norm. Takes what `filters.json` holds.

    Args:
        tiles: (filters, height, width, 3) in [0, 1], in that order.
        tree: the finding.
        path: of the figure.
    """
    count, columns = len(tiles), min(8, len(tiles))
    rows = -(-count // columns)
    figure = Drawing(figsize=(1.1 * columns + 0.3, 1.45 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for i, (axes, tile, entry) in enumerate(zip(panels, tiles, tree["filters"], strict=False)):
        colour = entry["colour_selectivity"] > tree["threshold"]
        axes.imshow(tile, interpolation="nearest")
        axes.spines[:].set(visible=True, color=ORANGE if colour else GREY, linewidth=2.5 if colour else 1.0)
        axes.set_title(f"{i + 1}", fontsize=8, color="#444444", pad=3)
        label = f"{entry['colour_selectivity']:.2f}\nnorm {entry['norm']:.2f}"  # the colour of a dead one is noise
        axes.set_xlabel(label, fontsize=8, weight="bold" if colour else "normal")
    rank = tree["rank_correlation"]
    lines = [
        f"{tree['config']}, {tree['layer']}: filters in the order of removal ({tree['criterion']}), below: colour "
        "selectivity, norm",
        f"colour-selective (> {tree['threshold']:g}, framed): {tree['colour_selective_first']} of the first "
        f"{tree['first']}, {tree['colour_selective']} of all {count}"
        + ("" if rank is None else f"; rank correlation {rank['rho']:+.2f}, p = {rank['p']:.2f}"),
    ]
    figure.suptitle("\n".join(lines), fontsize=8)
    return _save(figure, path)


def correlation_figure(tree: Mapping[str, Any], path: Path) -> Path:
    """A row of panels a target, a column a proxy; right and up is better. Takes what `correlate.json` holds."""
    targets = list(dict.fromkeys(entry["target"] for entry in tree["coefficients"]))
    proxies = list(tree["proxies"])
    figure = Drawing(figsize=(2.7 * len(proxies) + 0.4, 2.6 * len(targets) + 0.6), layout="constrained")
    panels = figure.subplots(len(targets), len(proxies), sharex="col", sharey="row", squeeze=False)
    for entry in tree["coefficients"]:
        i, j = targets.index(entry["target"]), proxies.index(entry["proxy"])
        rows = [row for row in tree["rows"] if row[entry["target"]] is not None]
        axes = panels[i, j]
        axes.scatter(
            [row[entry["proxy"]] for row in rows], [row[entry["target"]] for row in rows], 14, color=BLUE, alpha=0.7
        )
        found = [entry[name] for name in ("spearman", "pearson", "kendall")]
        shown = ["–" if value is None else f"{value:+.2f}" for value in found]
        axes.set_title("ρ {}  r {}  τ {}".format(*shown), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
    for axes, target in zip(panels[:, 0], targets, strict=True):
        count = sum(row[target] is not None for row in tree["rows"])
        axes.set_ylabel(f"{tree['targets'][target]}\n({count} plans)", fontsize=9)
        axes.yaxis.set_inverted(target in tree["losses"])
    for axes, proxy in zip(panels[-1], proxies, strict=True):
        axes.set_xlabel(tree["proxies"][proxy], fontsize=9)
        axes.xaxis.set_inverted(proxy in tree["losses"])
    budget, images = tree["budget"], tree["images"]
    tuned = f"; epochs of fine-tuning: {tree['finetune_epochs']}" if tree["finetune_epochs"] else ""
    fractions = {budget["kind"]: budget["fraction"], **budget.get("besides", {})}
    asked = " and ".join(f"{100 * part:g} % of the {COSTS[kind]}" for kind, part in fractions.items())
    figure.suptitle(
        f"{tree['config']}: random plans at {asked}; across: on "
        f"{images['search']} search images, up: on {images['test']} test images{tuned}; distances run backwards: right "
        "and up is better\nρ Spearman, r Pearson, τ Kendall: +1 where both prefer the same plans",
        fontsize=9,
    )
    return _save(figure, path)


def _label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    same = [other for other in rows if other["allocator"] == row["allocator"]]
    return f"{row['allocator']} {row['seed']}" if len(same) > 1 else str(row["allocator"])


def _number(value: float | None) -> float:
    """For a plot: what was not measured is not drawn."""
    return float("nan") if value is None else value


def _figure(width: float, height: float) -> tuple[Drawing, Any]:
    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Drawing, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:])
    return path
