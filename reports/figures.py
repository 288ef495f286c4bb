"""Figures: the plan, the reward curve, the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg", force=False)
from matplotlib.figure import Figure

from ..pruners.plan import RatioPlan

BLUE, GREY, ORANGE = "#2a6fbb", "#b9c0c8", "#d9822b"


def plan_figure(plan: RatioPlan, path: Path) -> Path:
    """Sparsity per layer as bars, with the channels kept on top."""
    names = [layer.name for layer in plan.layers]
    figure, axes = _figure(max(6.0, 0.32 * len(names) + 2.0), 4.2)
    axes.bar(range(len(names)), [layer.sparsity for layer in plan.layers], color=BLUE)
    for i, layer in enumerate(plan.layers):
        axes.text(i, layer.sparsity + 0.01, f"{layer.width}", ha="center", va="bottom", fontsize=7, color="#444444")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylim(0.0, 1.08)
    axes.set_ylabel("sparsity (on top: channels kept)")
    axes.set_title(
        f"{plan.architecture}, {plan.provenance.allocator}: {100 * plan.cost['flops']:.1f} % of the FLOPs, "
        f"{100 * plan.cost['params']:.1f} % of the parameters",
        fontsize=9,
    )
    return _save(figure, path)


def reward_figure(rewards: Sequence[float], path: Path) -> Path:
    """The reward of every episode, a running mean, and the best so far."""
    values = np.asarray(rewards, dtype=np.float64)
    window = max(1, min(20, len(values) // 5))
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    figure, axes = _figure(6.5, 4.0)
    axes.plot(values, ".", color=GREY, markersize=4, label="episode")
    axes.plot(np.arange(len(mean)) + window - 1, mean, color=BLUE, label=f"mean of {window}")
    axes.plot(np.maximum.accumulate(values), color=ORANGE, label="best so far")
    axes.axhline(values[0], color="black", linewidth=0.8, linestyle=":", label="uniform (episode 0)")
    axes.set_xlabel("episode")
    axes.set_ylabel("reward")
    axes.legend(fontsize=8)
    return _save(figure, path)


def comparison_figure(rows: Sequence[Mapping[str, Any]], plans: Sequence[RatioPlan], path: Path) -> Path:
    """Accuracy on the search and the test split, and every plan's sparsity along the network."""
    labels = [_label(row, rows) for row in rows]
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
    places = np.arange(len(rows))
    left.barh(places + 0.2, [row["search_accuracy"] for row in rows], 0.38, color=GREY, label="search")
    left.barh(places - 0.2, [row["test_accuracy"] for row in rows], 0.38, color=BLUE, label="test")
    if any("finetuned_test_accuracy" in row for row in rows):
        tuned = [row.get("finetuned_test_accuracy", np.nan) for row in rows]
        left.plot(tuned, places - 0.2, "D", color=ORANGE, markersize=4, label="test, fine-tuned")
    values = [row[key] for row in rows for key in ("search_accuracy", "test_accuracy")]
    left.set_xlim(max(0.0, min(values) - 3.0), 100.0 if max(values) > 97 else max(values) + 3.0)
    left.set_yticks(places, labels)
    left.invert_yaxis()
    left.set_xlabel("accuracy in per cent, repaired")
    left.legend(fontsize=7, loc="lower right")
    for label, plan in zip(labels, plans, strict=True):
        right.plot([layer.sparsity for layer in plan.layers], marker=".", label=label)
    right.set_xlabel("layer")
    right.set_ylabel("sparsity")
    right.set_ylim(0.0, 1.0)
    right.legend(fontsize=7)
    _save(figure, path)
    return path


def _label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    same = [other for other in rows if other["allocator"] == row["allocator"]]
    return f"{row['allocator']} {row['seed']}" if len(same) > 1 else str(row["allocator"])


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
