"""`secateur apply`: a plan makes a smaller network, repaired, fine-tuned, measured and saved."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..configs.registry import admit
from ..networks.inference import statistics
from ..networks.world import undisturbed, use_threads
from ..pruners import METHODS, Kept, PlanError, RatioPlan
from ..pruners.costs.latency import measure_latency
from ..pruners.costs.latency_files import runtime_name
from ..pruners.plan import PLAN_NAME, plan_path
from ..pruners.saved import NETWORK_NAME, REPAIRED_NAME
from ..reports.figures import plan_figure
from ..reports.handle import Opens
from ..reports.html import write_report
from ..reports.tables import COSTS, SHORT, Figures, cost_kinds
from ..storage.files import write_json
from ..storage.folders import check_free, claimed, free_folder, interrupted_run
from ..training.fit import DivergedError
from ..training.schedules import SCHEDULES, TrainFn
from .about import record
from .begun import Begun
from .described import hand_set, image_counts
from .initial import check
from .resolve import Given
from .retraining import CHECKPOINTS, Task, largest_difference
from .session import Session
from .train import SUMMARY_NAME

FEW_ZEROS = 0.05  # of all weights: fewer may be a dead unit's


@dataclass(frozen=True)
class Applied(Opens):
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
    train_fn: TrainFn | None = None,
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
        finetune: epochs, all rounds together; none takes the config's `finetune.epochs`, or from random weights as many
            as the dense network was trained for here.
        schedule: in which order cutting and training follow each other, one of `SCHEDULES`: `one_shot`, `iterative`,
            `gradual`, `rewind`, `scratch_e`, `scratch_b`. None takes the config's `finetune.schedule`.
        train_fn: your own loop, `train_fn(model, context)`, in place of ours; see `TrainContext`. It trains in place;
            schedules with rounds call it between cuts. What it does is not kept epoch by epoch, only rounds are.
        out: an empty or new folder; none takes `applied` beside the plan.
        resume: the folder of an interrupted one; plan, config, epochs and schedule are its own, and of the settings
            only the learning rate may be another. A `train_fn` is to be given again.

    Raises:
        PlanError: the plan is for another network.
        ValueError, FileNotFoundError: other bad input, in one line.
        RuntimeError: fine-tuning diverged; the last good epoch is kept.
    """
    if resume is not None and any(given is not None for given in (plan, finetune, schedule, out)):
        raise ValueError("--resume takes plan, epochs, schedule and folder from the folder itself: leave them out")
    check_free(out)
    if schedule is not None:
        _ = SCHEDULES[schedule]
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
        schedule = schedule or session.config.finetune.schedule
        epochs = _epochs(session, schedule) if finetune is None else finetune
        check(session, schedule, epochs, own_loop=train_fn is not None)
        begun = Begun.now(session, plan, epochs, schedule, train_fn)
    else:
        assert previous is not None
        begun.check(session, plan, previous, train_fn)
    folder = previous or free_folder(out, (beside or Path("runs") / session.config.name) / "applied")
    with claimed(folder, "apply", f"{REPAIRED_NAME}/{NETWORK_NAME}", new=previous is None):
        begun.write(folder)
        plan.save(folder / PLAN_NAME)
        session.save(folder)  # the config is the last: from here on it can be gone on with
        record(session, folder)
        return _apply(session, plan, begun, folder, train_fn)


def _epochs(session: Session, schedule: str) -> int:
    network = session.config.network
    if schedule in ("scratch_e", "scratch_b") and network is not None and network.pretrain is not None:
        return network.pretrain.epochs
    return session.config.finetune.epochs


def _apply(session: Session, plan: RatioPlan, begun: Begun, folder: Path, train_fn: TrainFn | None) -> Applied:
    reporter, compressor, epochs = session.reporter, session.compressor, begun.epochs
    masked, compressed = compressor.masked(plan.kept), compressor.compress(plan.kept)
    difference = largest_difference(session, masked, compressed.model)
    reporter.say(f"masked and compressed network agree: outputs differ by at most {difference:.1e} of their spread")

    task = Task(session, plan, begun, folder, train_fn)
    cut = task.repaired
    models = {"dense": session.model, "masked": masked}
    if epochs:
        models["repaired"] = cut.model
        if not (folder / REPAIRED_NAME / NETWORK_NAME).exists():
            task.save(cut, folder / REPAIRED_NAME)
        with _going_on(session, task, folder):
            cut = task.run()
    models["pruned"] = cut.model
    _warn_of_zeros(session.model, cut.model)

    costs = {name: _reached(session, plan.kept) for name in models} | {"pruned": _reached(session, cut.kept)}
    whole = _reached(session, session.structure.units)
    rows = measure(session, models, {**costs, "dense": whole, "masked": whole})
    summary = {
        **rows,
        "method": plan.method,
        "objective": session.config.objective.name,
        "measure": session.objective.measure,
        "schedule": begun.schedule,
        "finetune_epochs": epochs,
        "latency_batch": session.config.latency.batch,
        "latency_runtime": runtime_name(session.config.latency),
        "images": image_counts(session),
        "hand_set": hand_set(session, plan),
        "masked_difference": difference,
        "plan": plan.provenance.model_dump(),
    }
    if "latency" in session.config.budget.asked:
        found = summary["latency"] = _table_error(session, cut.kept, rows)
        reporter.say(
            "latency kept: {predicted:.1%} by the table, {measured:.1%} measured; dense: {dense_predicted_ms:.2f} ms "
            "by the table, {dense_measured_ms:.2f} ms measured".format(**found)
        )
    task.save(cut, folder)
    plan_figure(plan, folder / "plan.png")
    write_json(folder / SUMMARY_NAME, summary)  # the last: from here on there is nothing to go on with
    for path in folder.glob(CHECKPOINTS):
        path.unlink()
    write_report(folder)
    note = f"ms: one pass of {summary['latency_batch']} images, {summary['latency_runtime']}"
    if cut.hold is not None and costs["pruned"]["flops"] < 1.0:
        note += "; FLOPs without the zeros: dense kernels multiply them"
    reporter.show(figures_table("The plan, applied", rows, _titles(begun), note, session.objective.measure))
    return Applied(cut.model, folder, summary)


def _warn_of_zeros(before: nn.Module, after: nn.Module) -> None:
    """Where an earlier method has pruned by zeros, and repair or training of this one has filled them."""
    was, left = (_zeros(model) for model in (before, after))
    if was >= FEW_ZEROS and left < was / 2:
        warnings.warn(
            f"the network came with {was:.0%} of its weights at zero, and {left:.0%} are zero now: this method fits "
            "them anew; prune single weights (method: weights) after it",
            RuntimeWarning,
            stacklevel=2,
        )


def _zeros(model: nn.Module) -> float:
    """The part of a network's weights, biases aside, that is zero."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))


def _reached(session: Session, kept: Kept) -> dict[str, float]:
    """What a network costs that keeps so many units (layers,); its latency is measured."""
    return {kind: part for kind, part in session.structure.fractions(kept).items() if kind != "latency"}


def _titles(begun: Begun) -> dict[str, str]:
    """What the networks are called in the table."""
    done = {"one_shot": "… and fine-tuned", "gradual": "pruned while trained"}.get(begun.schedule, begun.schedule)
    return {
        "dense": "dense",
        "masked": "masked, nothing repaired",
        "repaired": "pruned and repaired",
        "pruned": f"{done}, {begun.epochs} epochs" if begun.epochs else "pruned and repaired",
    }


@contextlib.contextmanager
def _going_on(session: Session, task: Task, folder: Path) -> Iterator[None]:
    """Says how an interrupted fine-tuning goes on."""
    again = f"go on with: secateur apply --resume {folder}"
    try:
        yield
    except KeyboardInterrupt:
        session.reporter.say(f"stopped while fine-tuning; the repaired network is in {folder / REPAIRED_NAME}; {again}")
        raise
    except DivergedError as error:
        raise DivergedError(f"{error}; {again} --set {task.section}.learning_rate=…") from error


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


def measure(
    session: Session, models: Mapping[str, nn.Module], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    """The objective's measure on the test images, the costs as given, bytes of the weights as stored, and latency of
    every network, timed in turn; of the others than the dense one how their measure differs from its own, with the
    standard error of that on the same images."""
    with session.reporter.bar("measure", len(models)) as advance:
        latency = measure_latency(models, session.input_shape, session.config.latency)
        rows: dict[str, dict[str, float | None]] = {}
        dense: Tensor | None = None
        for name, model in models.items():
            seen = None if session.test is None else statistics(model, session.test, session.objective)
            rows[name] = {
                "test_accuracy": None if seen is None else session.objective.total(seen),
                **costs[name],
                "bytes": _stored(session, costs[name], model),
                "latency_ms": latency[name],
            }
            influence = None if seen is None else session.objective.influence(seen)
            if name == "dense":
                dense = influence
            elif dense is not None and influence is not None:
                gain = (influence - dense)[(influence - dense).isfinite()]
                rows[name]["test_change"] = (rows[name]["test_accuracy"] or 0.0) - (
                    rows["dense"]["test_accuracy"] or 0.0
                )
                rows[name]["test_change_standard_error"] = float(gain.std() / len(gain) ** 0.5)
            advance(name)
    return rows


def _stored(session: Session, costs: Mapping[str, float], model: nn.Module) -> int:
    """Bytes of a network's weights as `budget.size` counts them: 4 a number, few bits packed, no running statistics."""
    structure = session.structure
    if "size" in costs:
        return round(costs["size"] * structure.cost("size", structure.units))
    return 4 * sum(parameter.numel() for parameter in model.parameters())


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
    kinds = cost_kinds(rows.values())
    return Figures(
        title,
        f"{score} on the test images, {', '.join(COSTS[kind] for kind in kinds)} kept in per cent; {note}",
        ("network", score, *(SHORT[kind] for kind in kinds), "ms"),
        [_figures_row(label, rows[name], kinds) for name, label in titles.items() if name in rows],
    )


def _figures_row(label: str, row: Mapping[str, float | None], kinds: Sequence[str]) -> list[str]:
    shown = row["test_accuracy"]
    return [
        label,
        "–" if shown is None else f"{shown:.2f}",
        *(f"{100 * (row[kind] or 0):.1f}" for kind in kinds),
        f"{row['latency_ms']:.2f}",
    ]
