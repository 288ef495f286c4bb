"""Accuracy against cost: which networks of a run are drawn, alone or with those of other runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .charts import Cost, pareto_chart
from .markup import Markup, element
from .run import KINDS, Figures, Run

APART = 0.5  # per cent of the dense network's cost; networks that are less apart share it


@dataclass(frozen=True)
class Measured:
    """A network with an accuracy and costs.

    Attributes:
        series: that it is drawn as one of.
        name: its own.
        figures: of it.
        quick: whether only the search evaluated it, with less repair than a finished plan gets.
    """

    series: str
    name: str
    figures: Figures
    quick: bool = False


def measured(run: Run) -> list[Measured]:
    """The networks of a run."""
    summary = run.summary
    dense = [Measured("dense", "dense", summary.dense)] if summary.dense else []
    if run.kind == "compare":
        return dense + [Measured(row.allocator, f"{row.allocator}, seed {row.seed}", row) for row in summary.rows]
    if run.kind == "train":
        return [*_episodes(run), *dense, *_again(run)]
    if run.kind == "chain":
        return [Measured(row.stage, row.stage, row) for row in summary.stages]
    named = {"repaired": summary.repaired, "pruned": summary.pruned}
    return dense + [Measured(name, name, figures) for name, figures in named.items() if figures]


def finals(run: Run) -> list[Measured]:
    """Those that a run ends with."""
    found = [one for one in measured(run) if not one.quick and one.series != "again"]
    if run.kind == "train":
        best = run.summary.best
        label = run.plan.provenance.allocator if run.plan else "plan"
        return [one for one in found if one.series == "dense"] + ([Measured(label, "best plan", best)] if best else [])
    return found


def _episodes(run: Run) -> list[Measured]:
    return [
        Measured(
            "episode, as the search saw it",
            f"episode {episode['episode']}",
            Figures.model_validate({**episode, "search_accuracy": episode["accuracy"]}),
            quick=True,
        )
        for episode in run.episodes
    ]


def _again(run: Run) -> list[Measured]:
    """Plans that were measured again with the final repair; their costs are in the log."""
    costs = {episode["episode"]: episode for episode in run.episodes}
    found = []
    for figures in run.summary.reranked:
        episode = costs.get(figures.episode, {})
        whole = figures.model_copy(update={kind: episode.get(kind) for kind in KINDS})
        found.append(Measured("with the final repair", f"episode {figures.episode}, final repair", whole))
    return found


def after_training(run: Run) -> list[Measured]:
    """The networks of a comparison after its trainings, by their test score then; none where nothing was trained."""
    tuned = [
        Measured(
            row.allocator, f"{row.allocator}, seed {row.seed}, trained",
            row.model_copy(update={"test_accuracy": row.finetuned_test_accuracy}),
        )
        for row in run.summary.rows if row.finetuned_test_accuracy is not None
    ]  # fmt: skip
    return [*(one for one in finals(run) if one.series == "dense"), *tuned] if tuned else []


def split(networks: Sequence[Measured]) -> str:
    """On which images they were measured: on the test images, where any was."""
    return "test" if any(one.figures.test_accuracy is not None for one in networks) else "search"


def cost_charts(networks: Sequence[Measured], measure: str, of: str = "") -> Markup:
    """Accuracy against every kind of cost in which the networks differ; nothing where they differ in none.

    Args:
        networks: dense ones and others.
        measure: the objective's.
        of: what they are networks of, where a page shows several.
    """
    where = split(networks)
    drawn = []
    for kind in KINDS:
        points = against(kind, networks, measure)
        costs = [point.cost for point in points if point.series != "dense"]
        if len(costs) > 1 and max(costs) - min(costs) > APART:
            drawn.append(pareto_chart(points, kind, measure, where, of))
    return element("div", *drawn, class_="charts") if drawn else Markup()


def against(kind: str, networks: Sequence[Measured], measure: str) -> list[Cost]:
    """The networks whose accuracy and cost of that kind are known, as they are drawn."""
    where = split(networks)
    return [point for one in networks if (point := _point(one, kind, measure, where)) is not None]


def _point(one: Measured, kind: str, measure: str, where: str) -> Cost | None:
    cost, accuracy = getattr(one.figures, kind), getattr(one.figures, f"{where}_accuracy")
    if cost is None or accuracy is None:
        return None
    tip = f"{one.name}: {accuracy:.2f} ({measure}) at {100 * cost:.1f} % of the {KINDS[kind]}"
    return Cost(one.series, tip, 100 * cost, accuracy, one.figures.test_lead_standard_error, one.quick)


def told_apart(networks: Sequence[Measured], run: str) -> list[Measured]:
    """The same ones as of a run among several: the error of a lead over a row of that run says nothing to others."""
    alone = {"test_lead_standard_error": None}
    return [replace(one, name=f"{run}: {one.name}", figures=one.figures.model_copy(update=alone)) for one in networks]
