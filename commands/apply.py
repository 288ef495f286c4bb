"""`secateur apply`: a plan makes a smaller network, repaired, fine-tuned, measured and saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import nn

from ..configs import did_you_mean
from ..networks.inference import accuracy, first_images, logits
from ..pruners import RatioPlan
from ..pruners.costs.latency import measure_latency
from ..pruners.plan import PLAN_NAME, plan_path
from ..pruners.saved import save_network
from ..reports.figures import plan_figure
from ..storage.files import write_json
from ..storage.folders import check_free, new_folder
from ..training.fit import OnStep
from ..training.schedules import SCHEDULES, Gradual
from .resolve import Given
from .session import Session
from .train import SUMMARY_NAME

TOLERANCE = 1e-3  # of the outputs' spread; what layers are found by
WHOLE = {"flops": 1.0, "params": 1.0}  # what the dense network costs


@dataclass(frozen=True)
class Applied:
    """What applying a plan leaves behind.

    Attributes:
        model: the smaller network, in eval mode.
        folder: where it was saved; `secateur.load(folder)` gives it back.
        summary: what `summary.json` holds.
    """

    model: nn.Module
    folder: Path
    summary: dict[str, Any]


def apply(
    plan: RatioPlan | str | Path,
    session: Session | Given = None,
    *,
    finetune: int | None = None,
    schedule: str = "one_shot",
    out: str | Path | None = None,
) -> Applied:
    """Apply a plan: compress, check against the masked network, repair, fine-tune, measure, save.

    Args:
        plan: a plan, its file, or the run folder that holds it.
        session: a session, or a config, its name or its file; none takes the config beside the plan.
        finetune: epochs; none takes the config's `finetune.epochs`.
        schedule: `one_shot` cuts, repairs and fine-tunes; `gradual` tightens masks while fine-tuning (Zhu & Gupta
            2018), for methods that keep the network's shape.
        out: an empty or new folder; none takes `applied` beside the plan.

    Raises:
        PlanError: the plan is for another network.
        ValueError, FileNotFoundError: other bad input, in one line.
    """
    check_free(out)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule = {schedule!r}: only {' or '.join(SCHEDULES)}{did_you_mean(schedule, SCHEDULES)}")
    beside = None if isinstance(plan, RatioPlan) else plan_path(plan).parent
    plan = plan if isinstance(plan, RatioPlan) else RatioPlan.load(plan)
    session = session_for([plan], session, beside)
    epochs = session.config.finetune.epochs if finetune is None else finetune
    session.check_finetune(epochs)
    if schedule == "gradual" and not epochs:
        raise ValueError("schedule = 'gradual' compresses while fine-tuning: give finetune epochs")
    reporter, compressor = session.reporter, session.compressor
    masked, compressed = compressor.masked(plan.kept), compressor.compress(plan.kept)
    if schedule == "gradual" and compressed.hold is None:
        raise ValueError(f"schedule = 'gradual' needs a method that keeps the network's shape, not {plan.method}")
    folder = new_folder(out, (beside or Path("runs") / session.config.name) / "applied")

    difference = _largest_difference(session, masked, compressed.model)
    reporter.say(f"masked and compressed network agree: outputs differ by at most {difference:.1e} of their spread")
    models = {"dense": session.model, "masked": masked, "pruned": session.compress(plan.kept)}
    if epochs:
        models["repaired"] = models["pruned"]
        if schedule == "gradual":
            models["pruned"] = _tighten_while_training(session, plan, epochs)
        else:
            models["pruned"] = copy.deepcopy(models["repaired"])
            session.finetune(models["pruned"], epochs, _holding(models["pruned"], compressed.hold))

    reached = {kind: session.structure.fraction(kind, plan.kept) for kind in WHOLE}
    rows = measure(session, models, {name: WHOLE if name in ("dense", "masked") else reached for name in models})
    summary = {
        **rows,
        "method": plan.method,
        "objective": session.config.objective.name,
        "measure": session.objective.measure,
        "schedule": schedule,
        "finetune_epochs": epochs,
        "latency_batch": session.config.latency.batch,
        "masked_difference": difference,
        "plan": plan.provenance.model_dump(),
    }
    if session.config.budget.kind == "latency":
        found = summary["latency"] = _table_error(session, plan.kept, rows)
        reporter.say(
            "latency kept: {predicted:.1%} by the table, {measured:.1%} measured; dense: {dense_predicted_ms:.2f} ms "
            "by the table, {dense_measured_ms:.2f} ms measured".format(**found)
        )
    save_network(
        models["pruned"],
        folder,
        method=plan.method,
        recipe=compressed.recipe,
        network=session.config.network,
        input_shape=session.input_shape,
        objective=session.config.objective,
    )
    write_json(folder / SUMMARY_NAME, summary)
    plan.save(folder / PLAN_NAME)
    session.save(folder)
    plan_figure(plan, folder / "plan.png")
    tuned = f"… and fine-tuned, {epochs} epochs" if schedule == "one_shot" else f"pruned while trained, {epochs} epochs"
    titles = {
        "dense": "dense",
        "masked": "masked, nothing repaired",
        "repaired": "pruned and repaired",
        "pruned": tuned if epochs else "pruned and repaired",
    }
    note = f"ms: one pass of {summary['latency_batch']} images"
    if compressed.hold is not None:
        note += "; FLOPs without the zeros: dense kernels multiply them"
    reporter.show(figures_table("The plan, applied", rows, titles, note, session.objective.measure))
    return Applied(models["pruned"], folder, summary)


def session_for(plans: Sequence[RatioPlan], session: Session | Given, beside: Path | None) -> Session:
    """The session that plans are applied to; each plan is checked against its layers.

    Raises:
        PlanError: a plan is for another network.
    """
    found = Session.of(session).beside(beside, plans[0] if plans else None)
    for plan in plans:
        plan.check_method(found.config.method)
        plan.check(found.structure)
    return found


def _holding(model: nn.Module, hold: Callable[[nn.Module], None] | None) -> OnStep | None:
    """What keeps a network's form after each step of the optimizer, if anything must."""
    return None if hold is None else lambda _step, _total, _loss: hold(model)


def _tighten_while_training(session: Session, plan: RatioPlan, epochs: int) -> nn.Module:
    """The dense network, compressed step by step while it is trained."""
    model, units = copy.deepcopy(session.model), session.structure.units

    def tighten(current: nn.Module, part: float) -> Callable[[nn.Module], None]:
        kept = np.maximum(np.round(units - part * (units - plan.kept)).astype(np.int64), plan.kept)
        compressed = session.context.method.apply(replace(session.context, model=current), kept)
        hold = compressed.hold or (lambda _model: None)
        hold(current)
        return hold

    pace = session.config.gradual
    gradual = Gradual(model, tighten, ramp=pace.ramp, every=pace.every)
    session.finetune(model, epochs, gradual)
    gradual.finish()
    return model


def _largest_difference(session: Session, masked: nn.Module, compressed: nn.Module) -> float:
    """Over the outputs' spread, of the objective's features. The masked network is the oracle.

    Raises:
        RuntimeError: they do not agree; nothing is saved.
    """
    images = first_images(session.search, 100)
    expected, actual = (logits(model, images, session.objective.features) for model in (masked, compressed))
    difference = (actual - expected).abs().max() / expected.std().clamp_min(torch.finfo().tiny)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            "the compressed network does not compute what the masked one computes (outputs differ by "
            f"{float(difference):.1e} of their spread): leave layers out with layers.ignore until it does, "
            "and please report this network"
        )
    return float(difference)


def measure(
    session: Session, models: Mapping[str, nn.Module], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    """The objective's measure on the test images, the costs as given, and latency of every network, timed in turn."""
    with session.reporter.bar("measure", len(models)) as advance:
        latency = measure_latency(models, session.input_shape, session.config.latency)
        rows: dict[str, dict[str, float | None]] = {}
        for name, model in models.items():
            rows[name] = {
                "test_accuracy": None if session.test is None else accuracy(model, session.test, session.objective),
                **costs[name],
                "latency_ms": latency[name],
            }
            advance(name)
    return rows


def _table_error(session: Session, kept: NDArray[np.int64], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What this machine's table says of the plan and of the dense network, beside what `measure` found."""
    dense, pruned = (float(rows[name]["latency_ms"]) for name in ("dense", "pruned"))
    return {
        "predicted": session.structure.fraction("latency", kept),
        "measured": pruned / dense,
        "dense_predicted_ms": session.structure.cost("latency", session.structure.units) / 1e6,
        "dense_measured_ms": dense,
    }


def figures_table(
    title: str, rows: Mapping[str, Mapping[str, float | None]], titles: Mapping[str, str], note: str, measure: str
) -> Table:
    """What `measure` found, side by side: a row for every title there are figures for; `measure` is the objective's."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        caption=f"{measure.removesuffix(' %')} on the test images, FLOPs and parameters kept in per cent; {note}",
    )
    for column in ("network", measure.removesuffix(" %"), "FLOPs", "params", "ms"):
        table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for name, label in titles.items():
        if name in rows:
            row = rows[name]
            shown = row["test_accuracy"]
            table.add_row(
                label,
                "–" if shown is None else f"{shown:.2f}",
                f"{100 * (row['flops'] or 0):.1f}",
                f"{100 * (row['params'] or 0):.1f}",
                f"{row['latency_ms']:.2f}",
            )
    return table
