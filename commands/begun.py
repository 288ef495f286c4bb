"""What an application of a plan was begun with, on disk: it goes on with nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..pruners import RatioPlan
from ..storage.cache import digest
from ..storage.files import write_json
from ..storage.folders import BEGUN_NAME
from ..storage.reading import read_json
from ..training.checkpoint import network_of
from ..training.inputs import leaves
from ..training.objective import identity
from ..training.schedules import SCHEDULES, TrainFn
from .initial import initial
from .session import Session


@dataclass(frozen=True)
class Begun:
    """What an application was begun with, and goes on with.

    Attributes:
        epochs: of fine-tuning.
        schedule: one of `SCHEDULES`.
        of: what all else follows from, by name.
    """

    epochs: int
    schedule: str
    of: Mapping[str, str]

    @classmethod
    def now(
        cls, session: Session, plan: RatioPlan, epochs: int, schedule: str, train_fn: TrainFn | None = None
    ) -> Begun:
        """With a session and a plan."""
        settings = session.config.model_dump(
            mode="json",
            include={
                **dict.fromkeys(("layers", "repair", "gradual", "seed", "finetune"), True),
                "data": {"augment", "crop", "flip", "randaugment"},
            },
            exclude={
                "finetune": {"epochs", "learning_rate", "schedule", "initial", "channels_last"},
                "repair": {"search": {"distill"}, "final": {"distill"}},
            },
        )
        asked = [part for budget in plan.budget.fractions.items() for part in budget]
        kept = [plan.method, plan.criterion, *asked, plan.kept.tolist()]
        calibration = digest(tensor for batch in session.calibration for tensor in leaves(batch).values())
        of = {
            "network": network_of(session.model),
            "objective": identity(session.objective),
            "plan": json.dumps(kept),
            "config": json.dumps(settings),
            "calibration images": calibration,
        }
        if session.config.repair.final.distill:
            of["distillation"] = str(session.config.repair.final.distill)
        if session.config.data is not None and session.config.data.train is not None:
            of["number of training images"] = str(session.config.data.train)
        if epochs and session.train_loader is not None:
            of["training images"] = session.train_loader.identity
        if schedule == "rewind":
            of["initial weights"] = network_of(initial(session))
        if train_fn is not None:
            of["train_fn"] = getattr(train_fn, "__qualname__", type(train_fn).__qualname__)
        return cls(epochs, schedule, of)

    def check(self, session: Session, plan: RatioPlan, folder: Path, train_fn: TrainFn | None = None) -> None:
        """Whether these are what it was begun with.

        Raises:
            ValueError: they are not; the message says what differs.
        """
        now = dict(Begun.now(session, plan, self.epochs, self.schedule, train_fn).of)
        if "training images" not in self.of:  # a folder of before they were told
            now.pop("training images", None)
        if other := [name for name in {**now, **self.of} if now.get(name) != self.of.get(name)]:
            raise ValueError(
                f"--resume {folder}: it was begun with another {other[0]}; give that back, or apply the plan in a new "
                "folder"
            )

    def write(self, folder: Path) -> None:
        """To a folder."""
        write_json(folder / BEGUN_NAME, {"finetune_epochs": self.epochs, "schedule": self.schedule, "of": {**self.of}})

    @classmethod
    def read(cls, folder: Path) -> Begun:
        """From a folder.

        Raises:
            ValueError: nothing was begun there, or the file is damaged.
        """
        path = folder / BEGUN_NAME
        if not path.exists():
            raise ValueError(f"--resume {folder}: no {BEGUN_NAME}, so nothing that secateur apply began is there")
        try:
            tree = read_json(path)
            begun = cls(tree["finetune_epochs"], tree["schedule"], dict(tree["of"]))
            if not isinstance(begun.epochs, int) or begun.schedule not in SCHEDULES:
                raise ValueError(f"{begun.epochs!r} epochs of schedule {begun.schedule!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): apply the plan in a new folder") from error
        return begun
