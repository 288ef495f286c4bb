"""The parts of a run's report; each is there where the run has what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..pruners.plan import RatioPlan
from .charts import (
    Beside,
    beside_chart,
    candidates_chart,
    course_chart,
    layers_chart,
    leads_chart,
    number_chart,
    training_charts,
)
from .markup import Markup, element, escaped, joined
from .numbers import figures_part, table
from .pareto import cost_charts, measured
from .run import KINDS, Run
from .verdicts import verdict
from .waterfall import waterfall

MOST_TRAINED = 6  # trainings of a comparison whose curves are drawn


@dataclass(frozen=True)
class Section:
    """A part of the page: its identity within the run's, its heading, what it shows."""

    identity: str
    heading: str
    content: Markup


def sections(run: Run) -> list[Section]:
    """Those that have something to show, in the order of reading."""
    made = (
        ("stages", "Stage by stage", waterfall(run)),
        ("network", "The network, layer by layer", _network(run)),
        ("search", "The search", _search(run)),
        ("cost", "Accuracy against cost", cost_charts(measured(run), run.summary.measure)),
        ("figures", "Figures", figures_part(run)),
        ("training", "Training", _training(run)),
        ("made", "How it was made", _made(run)),
    )
    return [Section(*one) for one in made if one[2]]


def title(run: Run) -> str:
    """What the page of the run is called."""
    what = {"train": "search", "apply": "plan applied", "compare": "comparison", "plan": "plan proposed",
            "chain": "plans applied one after the other"}  # fmt: skip
    return f"{run.setting('name') or run.name}: {what[run.kind]}"


def question(run: Run) -> str:
    """What the run was to find out."""
    network = run.setting("network", "name") or (run.plan.architecture if run.plan else "the network")
    most = budget(run)
    asked = {
        "train": f"How much of each layer of {network} should go, so that it keeps at most {most}?",
        "apply": f"What is {network} worth when a plan has cut it to at most {most}?",
        "compare": f"Which way of choosing how much of each layer of {network} stays loses least at {most}?",
        "chain": f"What is {network} worth behind each of {len(run.plans)} plans, one after the other?",
        "plan": f"What does a trained policy propose for {network} at {most}?",
    }
    return asked[run.kind]


def budget(run: Run) -> str:
    """What may be kept, in words."""
    if run.plan is not None:
        fractions = run.plan.budget.fractions
        return " and ".join(f"{100 * value:.4g} % of its {KINDS.get(kind, kind)}" for kind, value in fractions.items())
    kinds = run.setting("budget")
    asked = kinds.items() if isinstance(kinds, dict) else ()
    told = [f"{value} of its {KINDS.get(kind, kind)}" for kind, value in asked if value is not None]
    return told[0] if told else "its budget"


def setting_line(run: Run) -> Markup:
    """Method, layers, images, in a definition list."""
    plan, images = run.plan, run.summary.images
    method = run.setting("method") or (plan and plan.method)
    if run.kind == "chain":
        method = ", then ".join(one.method for one in run.plans)
    told: dict[str, object] = {
        "Network": run.setting("network", "name") or (plan and plan.architecture),
        "Method": method,
        "Criterion": plan and plan.criterion,
        "Layers that may be cut": plan and len(plan.layers),
        "Chosen by": plan and run.kind != "compare" and f"{plan.provenance.allocator}, seed {plan.provenance.seed}",
        "Data": run.setting("data", "name"),
        "Images": ", ".join(f"{count:,} {name}" for name, count in images.items()),
    }
    pairs = [joined((element("dt", key), element("dd", value))) for key, value in told.items() if value]
    return element("dl", *(element("div", pair) for pair in pairs), class_="facts")


def verdict_part(run: Run) -> Markup:
    """The verdict's sentences, the first of them large; of a comparison the leads, drawn."""
    told = verdict(run)
    said = [
        element("p", _unbroken(sentence), class_="verdict" if i == 0 else "note") for i, sentence in enumerate(told)
    ]
    drawn = leads_chart(run.summary.rows, run.summary.measure) if run.summary.rows else Markup()
    return joined((*said, element("div", drawn, class_="charts") if drawn else None))


def _unbroken(sentence: str) -> Markup:
    """Numbers stay on one line with their sign and unit."""
    return Markup(escaped(sentence).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%"))


def _others(run: Run) -> list[Beside]:
    """Plans to be drawn beside the run's own: of other allocators, the base plan, hand-set ones."""
    found: dict[str, Sequence[int]] = {}
    if run.kind == "compare":
        for plan in run.plans[1:]:
            if run.plan is not None and plan.provenance.allocator != run.plan.provenance.allocator:
                found.setdefault(plan.provenance.allocator, plan.kept.tolist())
    elif run.episodes:
        found["base plan"] = run.episodes[0]["kept"]
    found |= {name: kept for name, kept in run.summary.hand_set.items() if name not in found}
    layers = len(run.plan.layers) if run.plan else 0
    return [Beside(name, kept) for name, kept in found.items() if len(kept) == layers]


def _network(run: Run) -> Markup:
    if run.kind == "chain":
        return element("div", *(layers_chart(plan.layers, plan.unit) for plan in run.plans), class_="charts")
    plan = run.plan
    if plan is None:
        return Markup()
    others = _others(run)
    drawn = [layers_chart(plan.layers, plan.unit), beside_chart(plan.layers, _called(plan), others)]
    ignored = [
        element("li", element("code", name), f": {reason}") for name, reason in sorted(run.summary.ignored.items())
    ]
    left = _folded(f"{len(ignored)} layers are left whole", element("ul", *ignored)) if ignored else None
    return joined((element("div", *drawn, class_="charts"), _layers_table(plan, others), left))


def _called(plan: RatioPlan) -> str:
    return plan.provenance.allocator


def _layers_table(plan: RatioPlan, others: Sequence[Beside]) -> Markup:
    shown = [Beside(_called(plan), plan.kept.tolist()), *others]
    rows = [
        [layer.name, f"{layer.units:,}", *(f"{p.kept[i]:,} ({100 * p.kept[i] / layer.units:.0f} %)" for p in shown)]
        for i, layer in enumerate(plan.layers)
    ]
    names = ["layer", f"{plan.unit} before", *(beside.name for beside in shown)]
    return _folded("All layers as a table", table("Units kept of each layer", names, rows))


def _search(run: Run) -> Markup:
    episodes = run.episodes
    if not episodes:
        return Markup()
    if run.kind == "compare":
        return element("div", candidates_chart(episodes), class_="charts")
    asked = run.plan.budget.fraction if run.plan else None
    drawn = [course_chart(episodes, asked, _chosen(run))]
    rewards: list[float] = [episode["reward"] for episode in episodes if episode.get("reward") is not None]
    if len(rewards) == len(episodes):  # version 0.1 wrote none
        drawn.append(number_chart(episodes, "reward", rewards, "What the agent learns from; of the base plan it is 0."))
    for name in episodes[0]["terms"]:
        values = [episode["terms"].get(name, 0.0) for episode in episodes]
        if any(values):
            note = "A term of the quality, as it is weighted."
            drawn.append(number_chart(episodes, f"term: {name}", values, note))
    return joined((element("div", *drawn, class_="charts"), _again_table(run), _seconds_table(run)))


def _chosen(run: Run) -> str | None:
    best = run.summary.best
    if not run.summary.reranked or best is None or best.episode is None:
        return None
    again = len(run.summary.reranked)
    return f"{again} of these plans were measured again with the final repair: that of episode {best.episode} was best."


def _again_table(run: Run) -> Markup:
    rows = [
        [f"{one.episode}", *("–" if value is None else form.format(value) for value, form in
         ((one.quality, "{:.4f}"), (one.search_accuracy, "{:.2f}")))] for one in run.summary.reranked
    ]  # fmt: skip
    columns = ("episode", "quality", f"{run.summary.measure}, search")
    return (
        _folded("Plans measured again", table("With the final repair, the best first", columns, rows))
        if rows
        else Markup()
    )


def _seconds_table(run: Run) -> Markup:
    parts = sorted(run.summary.seconds_per_part.items(), key=lambda item: -item[1])
    rows = [[name.replace("_", " "), f"{value:.1f}"] for name, value in parts]
    return _folded("Time by part", table("Where the seconds went", ("part", "seconds"), rows)) if rows else Markup()


def _folded(name: str, content: Markup) -> Markup:
    return element("details", element("summary", name), content)


def _training(run: Run) -> Markup:
    drawn: list[Markup] = []
    for name, epochs in list(run.training.items())[:MOST_TRAINED]:
        if epochs:
            drawn += training_charts(epochs, f"{name}: " if name else "", run.summary.measure)
    return element("div", *drawn, class_="charts") if drawn else Markup()


def _made(run: Run) -> Markup:
    parts: list[Markup] = []
    for begin in run.about.runs:
        if begin.command is not None:
            parts.append(element("pre", element("code", begin.command), class_="scroll", tabindex="0"))
    versions = run.plan.provenance.versions if run.plan else {}
    machine: dict[str, Any] = {}
    if run.about.runs:
        versions, machine = run.about.runs[-1].versions, run.about.runs[-1].machine
    tables = [
        table(caption, ("name", "value"), [[name, value] for name, value in told.items()], "plain")
        for caption, told in (("Versions", versions), ("Machine", machine))
        if told
    ]
    parts.append(element("div", *tables, class_="pair"))
    config = element("pre", element("code", run.config_text), class_="scroll", tabindex="0")
    parts.append(_folded("The whole config", config))
    return joined(parts)
