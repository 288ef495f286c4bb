"""Several plans one after the other: each is applied to the network that the one before it left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ..configs.registry import admit
from ..configs.scalars import FileName
from ..networks.world import undisturbed
from ..pruners import RatioPlan
from ..pruners.plan import PLAN_NAME, plan_path
from ..pruners.saved import load
from ..reports.handle import Opens
from ..reports.html import write_report
from ..reports.run import CHAIN_NAME
from ..reports.tables import Figures
from ..storage.files import write_json
from ..storage.folders import (
    CHAIN_BEGUN_NAME,
    CHAIN_STAGES_NAME,
    CONFIG_NAME,
    check_free,
    claimed,
    free_folder,
    whole_folder,
)
from ..storage.reading import read_json, validated
from ..training.schedules import SCHEDULES, TrainFn
from .about import record
from .apply import apply, session_for
from .resolve import Given, save_config
from .session import Session
from .train import SUMMARY_NAME


@dataclass(frozen=True)
class Chain(Opens):
    """What applying several plans leaves behind.

    Attributes:
        model: the last network, in eval mode.
        folder: with a folder for every plan; the last one is `secateur.load`'s.
        stages: a row for the dense network and one behind every plan, as `chain.json` holds them.
    """

    model: nn.Module
    folder: Path
    stages: list[dict[str, Any]]


class _Begun(BaseModel):
    """`chain-begun.json`."""

    model_config = ConfigDict(extra="forbid")

    stages: list[FileName] = Field(min_length=2)
    finetune: int | None
    schedule: str | None


@undisturbed()
def chain(
    plans: Sequence[RatioPlan | str | Path] = (),
    session: Session | Given = None,
    *,
    finetune: int | None = None,
    schedule: str | None = None,
    train_fn: TrainFn | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
) -> Chain:
    """Apply plans one after the other: each is for the network that those before it leave (`network.weights` is its
    folder), is repaired, measured and saved; the last network loads without the others.

    Args:
        plans: two or more plans, their files or run folders.
        session: a session, or a config, its name or its file; none takes the config beside each plan.
        finetune: epochs behind the last plan; the others are repaired only. None takes the config's.
        schedule: of that training; none takes the config's.
        train_fn: your own loop; see `apply`.
        out: an empty or new folder.
        resume: the folder of an interrupted chain: finished stages stay, plans and epochs are its own.

    Raises:
        PlanError: a plan is for another network than the one that it is given.
        ValueError, FileNotFoundError: other bad input, in one line.
    """
    session = Session.of(session)
    if resume is None:
        folder = _begin(plans, session, finetune, schedule, out)
    elif plans or finetune is not None or schedule is not None or out is not None:
        raise ValueError("--resume takes plans, epochs, schedule and folder from the folder itself: leave them out")
    else:
        folder = Path(resume)
    begun = validated(_Begun, read_json(folder / CHAIN_BEGUN_NAME), str(folder / CHAIN_BEGUN_NAME))
    training = {"finetune": begun.finetune, "schedule": begun.schedule, "train_fn": train_fn}
    done: list[Path] = []
    with claimed(folder, "apply", CHAIN_NAME, new=False):
        for number, name in enumerate(begun.stages, 1):
            session.reporter.say(f"{number} of {len(begun.stages)}: {name.partition('-')[2]}")
            how = training if number == len(begun.stages) else {"finetune": 0, "schedule": "one_shot"}
            try:
                done.append(_stage(session, folder, name, done[-1] if done else None, how))
            except KeyboardInterrupt:
                session.reporter.say(f"all plans: go on with secateur apply --resume {folder}")
                raise
        measure, rows = _rows(done)
        # the last: from here on there is nothing to go on with
        write_json(folder / CHAIN_NAME, {"measure": measure, "stages": rows})
    write_report(folder)
    session.reporter.show(_table(rows, measure))
    return Chain(load(done[-1], trust_code=session.trust_code), folder, rows)


def _begin(
    plans: Sequence[RatioPlan | str | Path],
    session: Session,
    finetune: int | None,
    schedule: str | None,
    out: str | Path | None,
) -> Path:
    """A new folder with everything that the stages need."""
    if len(plans) < 2:
        raise ValueError("a chain has two plans or more; one is applied by `apply`")
    if schedule is not None:
        _ = SCHEDULES[schedule]
    check_free(out)
    sessions, loaded = [], []
    files = [None if isinstance(given, RatioPlan) else plan_path(given) for given in plans]
    for given, file in zip(plans, files, strict=True):
        plan = given if isinstance(given, RatioPlan) else RatioPlan.load(given)
        admit({"method": plan.method, "criterion": plan.criterion}, trust_code=session.trust_code)
        loaded.append(plan)
        sessions.append(session.beside(None if file is None else file.parent, plan))
    if sessions[0].config.network is None:
        raise ValueError(
            "several plans need a network that a config names: of your own, apply one plan, then the next to "
            "Session(model=secateur.load(FOLDER, YourNetwork()))"
        )
    session_for(loaded[:1], sessions[0], None, files[:1])  # the others' networks are not there yet
    folder = free_folder(out, Path("runs") / f"{sessions[0].config.name}-chain")
    names = [f"{number}-{plan.method.rpartition(':')[2]}" for number, plan in enumerate(loaded, 1)]
    with whole_folder(folder.absolute()) as temporary:
        for name, stage, plan in zip(names, sessions, loaded, strict=True):
            home = temporary / CHAIN_STAGES_NAME / name
            home.mkdir(parents=True)
            plan.save(home / PLAN_NAME)
            save_config(stage.config, home)
        sessions[0].save(temporary / CHAIN_STAGES_NAME / names[0])  # with the network, where it was trained for the run
        save_config(sessions[0].config, temporary)
        record(sessions[0], temporary)
        write_json(temporary / CHAIN_BEGUN_NAME, {"stages": names, "finetune": finetune, "schedule": schedule})
    return folder


def _stage(session: Session, folder: Path, name: str, before: Path | None, how: Mapping[str, Any]) -> Path:
    """The folder of a plan's network: finished already, gone on with, or begun."""
    home, own = folder / CHAIN_STAGES_NAME / name, folder / name
    if (own / SUMMARY_NAME).is_file():
        return own
    plan = RatioPlan.load(home)
    weights = [] if before is None else [f"network.weights={before.absolute()}"]
    stage = session.beside(home, plan, overrides=weights)
    if (own / CONFIG_NAME).is_file():
        apply(None, stage, train_fn=how.get("train_fn"), resume=own)
    else:
        apply(plan, stage, **how, out=own)
    return own


def _rows(folders: Sequence[Path]) -> tuple[str, list[dict[str, Any]]]:
    """What is measured, and it of the dense network and of what every stage left; costs as parts of the dense one's."""
    found: list[dict[str, Any]] = []
    measure = ""
    kept = {"flops": 1.0, "params": 1.0}
    for folder in folders:
        summary = validated(_Summary, read_json(folder / SUMMARY_NAME), str(folder / SUMMARY_NAME))
        if not found:
            measure = summary.measure
            found.append({"stage": "dense", **summary.dense.model_dump(), **kept})
        kept = {kind: part * getattr(summary.pruned, kind) for kind, part in kept.items()}
        found.append({"stage": folder.name, **summary.pruned.model_dump(), **kept})
    return measure, found


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    test_accuracy: float | None
    flops: float
    params: float
    bytes: int
    latency_ms: float


class _Summary(BaseModel):
    """What is read of a stage's summary."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    dense: _Row
    pruned: _Row
    measure: str


def _table(rows: Sequence[Mapping[str, Any]], measure: str) -> Figures:
    shown = [
        [
            row["stage"],
            "–" if row["test_accuracy"] is None else f"{row['test_accuracy']:.2f}",
            *(f"{100 * row[kind]:.1f}" for kind in ("flops", "params")),
            f"{row['bytes']:,}",
            f"{row['latency_ms']:.2f}",
        ]
        for row in rows
    ]
    score = measure.removesuffix(" %")
    note = f"{score} on the test images, FLOPs and parameters kept of the dense network's in per cent, bytes as stored"
    return Figures("Plans, one after the other", note, ("behind", score, "FLOPs", "params", "bytes", "ms"), shown)
