"""`secateur apply`: a plan makes a smaller network, repaired, fine-tuned, measured and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..configs import did_you_mean
from ..configs.registry import admit
from ..networks.copying import copied
from ..networks.inference import accuracy, first_images, logits
from ..networks.world import undisturbed, use_threads
from ..pruners import METHODS, PlanError, RatioPlan
from ..pruners.costs.latency import measure_latency
from ..pruners.plan import PLAN_NAME, plan_path
from ..pruners.saved import NETWORK_NAME, REPAIRED_NAME, load, save_network
from ..reports.figures import plan_figure
from ..reports.tables import Figures
from ..storage.files import write_json
from ..storage.folders import check_free, claimed, free_folder, interrupted_run
from ..training.checkpoint import Checkpoint
from ..training.fit import DivergedError
from ..training.schedules import SCHEDULES, Gradual
from .begun import Begun
from .resolve import Given
from .session import Session
from .train import SUMMARY_NAME
from .tuning import holding

CHECKPOINT_NAME = "finetune.safetensors"
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


@undisturbed()
def apply(
    plan: RatioPlan | str | Path | None = None,
    session: Session | Given = None,
    *,
    finetune: int | None = None,
    schedule: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Applied:
    """Apply a plan: compress, check against the masked network, repair, fine-tune, measure, save.

    The repaired network is in `repaired/` before fine-tuning begins, and `load` reads it; fine-tuning is kept epoch by
    epoch. What was killed, or failed, goes on with `resume`, and ends as if it had never stopped, bit for bit on the
    CPU.

    Args:
        plan: a plan, its file, or the run folder that holds it.
        session: a session, or a config, its name or its file; none takes the config beside the plan.
        finetune: epochs; none takes the config's `finetune.epochs`.
        schedule: `one_shot` cuts, repairs and fine-tunes; `gradual` tightens masks while fine-tuning (Zhu & Gupta
            2018), for methods that keep the network's shape. None is `one_shot`.
        out: an empty or new folder; none takes `applied` beside the plan.
        resume: the folder of an interrupted one; plan, config, epochs and schedule are its own, and of the settings
            only `finetune.learning_rate` may be another.

    Raises:
        PlanError: the plan is for another network.
        ValueError, FileNotFoundError: other bad input, in one line.
        RuntimeError: fine-tuning diverged; the last good epoch is kept.
    """
    if resume is not None and any(given is not None for given in (plan, finetune, schedule, out)):
        raise ValueError("--resume takes plan, epochs, schedule and folder from the folder itself: leave them out")
    check_free(out)
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(f"schedule = {schedule!r}: only {' or '.join(SCHEDULES)}{did_you_mean(schedule, SCHEDULES)}")
    previous = interrupted_run(resume, "apply", SUMMARY_NAME) if resume is not None else None
    begun = Begun.read(previous) if previous is not None else None
    given = previous if plan is None else plan
    if given is None:
        raise ValueError("nothing to apply: give a plan, or the folder of an interrupted one (resume)")
    file = None if isinstance(given, RatioPlan) else plan_path(given)
    beside = None if file is None else file.parent
    plan = given if isinstance(given, RatioPlan) else RatioPlan.load(given)
    session = session_for([plan], session, beside, [file])
    use_threads(session.config.threads)
    if begun is None:
        epochs = session.config.finetune.epochs if finetune is None else finetune
        begun = Begun.now(session, plan, epochs, schedule or SCHEDULES[0])
    else:
        assert previous is not None
        begun.check(session, plan, previous)
    folder = previous or free_folder(out, (beside or Path("runs") / session.config.name) / "applied")
    with claimed(folder, "apply", f"{REPAIRED_NAME}/{NETWORK_NAME}", new=previous is None):
        begun.write(folder)
        plan.save(folder / PLAN_NAME)
        session.save(folder)  # the config is the last: from here on it can be gone on with
        return _apply(session, plan, begun, folder)


def _apply(session: Session, plan: RatioPlan, begun: Begun, folder: Path) -> Applied:
    reporter, compressor, epochs = session.reporter, session.compressor, begun.epochs
    masked, compressed = compressor.masked(plan.kept), compressor.compress(plan.kept)
    if begun.schedule == "gradual" and compressed.hold is None:
        raise ValueError(f"schedule = 'gradual' needs a method that keeps the network's shape, not {plan.method}")
    difference = _largest_difference(session, masked, compressed.model)
    reporter.say(f"masked and compressed network agree: outputs differ by at most {difference:.1e} of their spread")

    def save(model: nn.Module, to: Path) -> None:
        save_network(
            model,
            to,
            method=plan.method,
            recipe=compressed.recipe,
            network=session.config.network,
            input_shape=session.input_shape,
            objective=session.config.objective,
        )

    models = {"dense": session.model, "masked": masked, "pruned": _repaired(session, plan, folder / REPAIRED_NAME)}
    checkpoint = Checkpoint(folder / CHECKPOINT_NAME, {**begun.of, "schedule": begun.schedule})
    if epochs:
        models["repaired"] = models["pruned"]
        if not (folder / REPAIRED_NAME / NETWORK_NAME).exists():
            save(models["repaired"], folder / REPAIRED_NAME)
        with _going_on(session, folder):
            models["pruned"] = _finetuned(session, plan, begun, models["repaired"], compressed.hold, checkpoint)

    reached = {kind: session.structure.fraction(kind, plan.kept) for kind in WHOLE}
    rows = measure(session, models, {name: WHOLE if name in ("dense", "masked") else reached for name in models})
    summary = {
        **rows,
        "method": plan.method,
        "objective": session.config.objective.name,
        "measure": session.objective.measure,
        "schedule": begun.schedule,
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
    save(models["pruned"], folder)
    plan_figure(plan, folder / "plan.png")
    write_json(folder / SUMMARY_NAME, summary)  # the last: from here on there is nothing to go on with
    checkpoint.remove()
    note = f"ms: one pass of {summary['latency_batch']} images"
    if compressed.hold is not None:
        note += "; FLOPs without the zeros: dense kernels multiply them"
    reporter.show(figures_table("The plan, applied", rows, _titles(begun), note, session.objective.measure))
    return Applied(models["pruned"], folder, summary)


def _titles(begun: Begun) -> dict[str, str]:
    """What the networks are called in the table."""
    done = "… and fine-tuned" if begun.schedule == "one_shot" else "pruned while trained"
    return {
        "dense": "dense",
        "masked": "masked, nothing repaired",
        "repaired": "pruned and repaired",
        "pruned": f"{done}, {begun.epochs} epochs" if begun.epochs else "pruned and repaired",
    }


def _repaired(session: Session, plan: RatioPlan, folder: Path) -> nn.Module:
    """The smaller network, repaired; the one that is there already, if it is."""
    if not (folder / NETWORK_NAME).exists():
        return session.compress(plan.kept)
    device = next(session.model.parameters()).device
    return load(folder, session.model, trust_code=session.trust_code).to(device)


def _finetuned(
    session: Session,
    plan: RatioPlan,
    begun: Begun,
    repaired: nn.Module,
    hold: Callable[[nn.Module], None] | None,
    checkpoint: Checkpoint,
) -> nn.Module:
    """A fine-tuned copy; with a gradual schedule, of the dense network."""
    if begun.schedule == "gradual":
        return _tighten_while_training(session, plan, begun.epochs, checkpoint)
    model = copied(repaired)
    session.finetune(model, begun.epochs, on_step=holding(model, hold), checkpoint=checkpoint)
    return model


@contextlib.contextmanager
def _going_on(session: Session, folder: Path) -> Iterator[None]:
    """Says how an interrupted fine-tuning goes on."""
    again = f"go on with: secateur apply --resume {folder}"
    try:
        yield
    except KeyboardInterrupt:
        session.reporter.say(f"stopped while fine-tuning; the repaired network is in {folder / REPAIRED_NAME}; {again}")
        raise
    except DivergedError as error:
        raise DivergedError(f"{error}; {again} --set finetune.learning_rate=…") from error


def session_for(
    plans: Sequence[RatioPlan], session: Session | Given, beside: Path | None, files: Sequence[Path | None]
) -> Session:
    """The session that plans are applied to; each plan is checked against its layers.

    Args:
        plans: to be applied.
        session: a session, or what makes one.
        beside: the first plan's folder.
        files: of the plans, where they come from any.

    Raises:
        PlanError: a plan is for another network, or of a method or criterion that is not known here.
    """
    session = Session.of(session)
    for plan, file in zip(plans, files, strict=True):
        with _named(file):
            admit({"method": plan.method, "criterion": plan.criterion}, trust_code=session.trust_code)
            METHODS[plan.method].check_criterion(plan.criterion)
    found = session.beside(beside, plans[0] if plans else None)
    for plan, file in zip(plans, files, strict=True):
        with _named(file):
            plan.check_method(found.config.method)
            plan.check(found.structure)
    return found


@contextlib.contextmanager
def _named(file: Path | None) -> Iterator[None]:
    """What is wrong with a plan, said with its file."""
    try:
        yield
    except ValueError as error:
        raise PlanError(f"{file}: {error}" if file is not None else str(error)) from None


def _tighten_while_training(session: Session, plan: RatioPlan, epochs: int, checkpoint: Checkpoint) -> nn.Module:
    """The dense network, compressed step by step while it is trained."""
    model, units = copied(session.model), session.structure.units

    def tighten(current: nn.Module, part: float) -> Callable[[nn.Module], None]:
        kept = np.maximum(np.round(units - part * (units - plan.kept)).astype(np.int64), plan.kept)
        compressed = session.context.method.apply(replace(session.context, model=current), kept)
        hold = compressed.hold or (lambda _model: None)
        hold(current)
        return hold

    pace = session.config.gradual
    gradual = Gradual(model, tighten, ramp=pace.ramp, every=pace.every)
    session.finetune(model, epochs, on_step=gradual, on_epoch=gradual.begin_epoch, checkpoint=checkpoint)
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
) -> Figures:
    """What `measure` found, side by side: a row for every title there are figures for; `measure` is the objective's."""
    score = measure.removesuffix(" %")
    return Figures(
        title,
        f"{score} on the test images, FLOPs and parameters kept in per cent; {note}",
        ("network", score, "FLOPs", "params", "ms"),
        [_figures_row(label, rows[name]) for name, label in titles.items() if name in rows],
    )


def _figures_row(label: str, row: Mapping[str, float | None]) -> list[str]:
    shown = row["test_accuracy"]
    return [
        label,
        "–" if shown is None else f"{shown:.2f}",
        f"{100 * (row['flops'] or 0):.1f}",
        f"{100 * (row['params'] or 0):.1f}",
        f"{row['latency_ms']:.2f}",
    ]
