"""What a comparison trains: every plan by every schedule, on the same images in the same order; who is ahead then."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.inference import accuracy, count_images, statistics
from ..pruners import RatioPlan
from ..reports.coefficients import coefficients
from ..reports.tables import Figures
from ..storage.files import read_tensors, write_tensors
from ..storage.folders import FINETUNED_NAME
from .begun import Begun
from .retraining import Task
from .session import Session

ROW_NAME = "row.safetensors"
FEWEST = 3  # plans whose order is worth a correlation


@dataclass(frozen=True)
class Trained:
    """A plan's network, trained by one schedule with one seed.

    Attributes:
        row: what `compare.json` holds of it.
        influence: (N,) what each test image adds to the measure; none without test images.
    """

    row: dict[str, Any]
    influence: Tensor | None


@dataclass(frozen=True)
class Job:
    """A training that a comparison asks for.

    Attributes:
        plan: of the network.
        number: of the plan, in the comparison.
        schedule: by name.
        seed: added to the config's: order and augmentation of the images, which are the same for every plan.
        epochs: of the schedule.
        home: folder of the comparison.
        of: hash of what else its figures depend on.
    """

    plan: RatioPlan
    number: int
    schedule: str
    seed: int
    epochs: int
    home: Path
    of: str

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.home / FINETUNED_NAME / f"{self.number}-{self.schedule}-{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return (self.folder / ROW_NAME).exists()


def train(session: Session, job: Job, repaired: nn.Module | None = None) -> Trained:
    """Train a plan's network; what was finished before is read, what was begun goes on.

    Args:
        session: with the images.
        job: what is trained.
        repaired: the plan's network, where it is made already; not changed.
    """
    plan = job.plan
    about = {"plan": json.dumps(plan.kept.tolist()), "epochs": str(job.epochs), "of": job.of}
    done = _read(job.folder / ROW_NAME, about)
    if done is None:
        done = _train(session, job, repaired, Begun(job.epochs, job.schedule, about))
        tensors = {} if done.influence is None else {"influence": done.influence}
        write_tensors(job.folder / ROW_NAME, tensors, {**about, "row": json.dumps(done.row)})
    name = {"allocator": plan.provenance.allocator, "seed": plan.provenance.seed}
    row = {"plan": job.number, **name, "schedule": job.schedule, "training_seed": job.seed, **done.row}
    return Trained(row, done.influence)


def _read(path: Path, about: Mapping[str, str]) -> Trained | None:
    """What was trained before.

    Raises:
        ValueError: it is damaged, or of another plan.
    """
    try:
        tensors, told = read_tensors(path)
    except FileNotFoundError:
        return None
    if any(told.get(key, value) != value for key, value in about.items()):  # `of` is younger than the rest
        raise ValueError(
            f"{path} is of another plan, or of a training with other images or settings: delete its folder, and it is "
            "trained anew"
        )
    return Trained(json.loads(told["row"]), tensors.get("influence"))


def _train(session: Session, job: Job, repaired: nn.Module | None, begun: Begun) -> Trained:
    seed = (session.config.seed + job.seed) % 2**32
    task = Task(session, job.plan, begun, job.folder, repaired=repaired, seed=seed)
    model = task.run().model
    row: dict[str, Any] = {
        "search_accuracy": accuracy(model, session.search, session.objective),
        "test_accuracy": None,
        "images": task.log.images(),
        "dense_images": task.log.images(taught=True),
        "seconds": task.log.seconds(),
        "search_images": job.plan.provenance.candidates * _images_a_candidate(session),
    }
    if session.test is None:
        return Trained(row, None)
    seen = statistics(model, session.test, session.objective)
    row["test_accuracy"] = session.objective.total(seen)
    return Trained(row, session.objective.influence(seen).cpu())


def _images_a_candidate(session: Session) -> int:
    """Images that a search's evaluation of one runs through a network: those that repair, and those that score."""
    repair = session.config.repair.search
    calibration = count_images(session.calibration)
    repairing = 0 if repair.kind != "sequential" else min(repair.images or calibration, calibration)
    return repairing + repair.adaptive_bn + count_images(session.search)


def after(
    rows: Sequence[dict[str, Any]], trained: Sequence[Trained], schedules: Sequence[str], epochs: int
) -> dict[str, Any]:
    """What `compare.json` says of trainings."""
    if not trained:
        return {}
    summary, spearman = summarised(trained), order_kept(rows, trained, schedules[0])
    return {
        "trained": [one.row for one in trained],
        "trained_summary": summary,
        "trained_spearman": spearman,
        "trained_verdict": trained_verdict(summary, epochs, spearman),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; none of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarised(trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """A row for every allocator and schedule, best first: means over seeds, and the best one's paired lead.

    The lead's standard error is over the test images, of what each adds to the measure, averaged over the seeds.
    """
    groups: dict[tuple[str, str], list[Trained]] = {}
    for one in trained:
        groups.setdefault((one.row["allocator"], one.row["schedule"]), []).append(one)
    rows, parts = [], []
    for (allocator, schedule), members in groups.items():
        scores = [one.row["test_accuracy"] for one in members]
        influences = [one.influence for one in members if one.influence is not None]
        known = len(influences) == len(members)
        rows.append(
            {
                "allocator": allocator,
                "schedule": schedule,
                "trainings": len(members),
                "test_accuracy": sum(scores) / len(scores) if known else None,
                "test_spread": max(scores) - min(scores) if known else None,
                "search_accuracy": sum(one.row["search_accuracy"] for one in members) / len(members),
                "images": sum(one.row["images"] for one in members) // len(members),
                "dense_images": sum(one.row["dense_images"] for one in members) // len(members),
                "search_images": sum(one.row["search_images"] for one in members) // len(members),
                "seconds": round(sum(one.row["seconds"] for one in members) / len(members), 3),
            }
        )
        parts.append(torch.stack(influences).mean(0) if known else None)
    order = sorted(range(len(rows)), key=lambda i: -(rows[i]["test_accuracy"] or 0.0))
    best = order[0]
    for i in order[1:]:
        mine, theirs = parts[best], parts[i]
        if mine is not None and theirs is not None:
            gain = (mine - theirs)[(mine - theirs).isfinite()]
            rows[i]["behind"] = rows[best]["test_accuracy"] - rows[i]["test_accuracy"]
            rows[i]["behind_standard_error"] = float(gain.std() / len(gain) ** 0.5)
    return [rows[i] for i in order]


def order_kept(rows: Sequence[dict[str, Any]], trained: Sequence[Trained], schedule: str) -> float | None:
    """Spearman's correlation of the plans' accuracy before training and after; none for fewer than three plans."""
    before, after = [], []
    for number, row in enumerate(rows):
        ours = [one.row for one in trained if one.row["plan"] == number and one.row["schedule"] == schedule]
        scores = [one["test_accuracy"] for one in ours if one["test_accuracy"] is not None]
        if scores and row["test_accuracy"] is not None:
            before.append(row["test_accuracy"])
            after.append(sum(scores) / len(scores))
    if len(before) < FEWEST:
        return None
    found: float = coefficients(np.array(before), np.array(after))["spearman"]
    return found


def trained_verdict(summary: Sequence[dict[str, Any]], epochs: int, spearman: float | None) -> str | None:
    """Who is best after training, and ahead of whom beyond chance (two standard errors), in a sentence.

    Returns:
        None where there are no test images, or nothing to compare with.
    """
    if len(summary) < 2 or "behind" not in summary[1]:
        return None
    lead = {_called(row, summary): row["behind"] / max(row["behind_standard_error"], 1e-12) for row in summary[1:]}
    ahead = [name for name, errors in lead.items() if errors > 2.0]
    level = [name for name in lead if name not in ahead]
    told = "; ".join(
        f"{word} {', '.join(names)}"
        for word, names in (("beyond two standard errors ahead of", ahead), ("not beyond chance ahead of", level))
        if names
    )
    order = "" if spearman is None else f"; order of the plans before and after: Spearman {spearman:.2f}"
    trained = f"{epochs} epochs" if summary[0]["schedule"] != "scratch_b" else f"the FLOPs of {epochs} dense epochs"
    best = f"{_called(summary[0], summary)} is best after {trained}, {summary[0]['test_accuracy']:.2f}"
    return f"{best}: {told}{order}"


def trained_table(summary: Sequence[dict[str, Any]], measure: str) -> Figures:
    """One row an allocator and schedule, the best first; `measure` is the objective's."""
    return Figures(
        "After training",
        f"{measure.removesuffix(' %')} on the test images, mean and spread (most less least) over n trainings; behind "
        "the first with standard errors on the same images; thousands of images run through networks by search, "
        "training and the dense network it learns from; seconds of one training",
        ("plan", "n", "test", "spread", "behind", "1,000 im.", "s"),
        [_cells(_called(row, summary), row) for row in summary],
    )


def _called(row: dict[str, Any], summary: Sequence[dict[str, Any]]) -> str:
    alone = len({other["schedule"] for other in summary}) == 1
    return row["allocator"] if alone else f"{row['allocator']} ({row['schedule']})"


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    behind = f"{row['behind']:.2f} ± {row['behind_standard_error']:.2f}" if "behind" in row else "–"
    images = row["search_images"] + row["images"] + row["dense_images"]
    return [
        name,
        str(row["trainings"]),
        "–" if row["test_accuracy"] is None else f"{row['test_accuracy']:.2f}",
        "–" if row["test_spread"] is None else f"{row['test_spread']:.2f}",
        behind,
        f"{images / 1000:.1f}",
        f"{row['seconds']:.1f}",
    ]
