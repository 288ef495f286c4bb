"""Every epoch of an application's trainings: as a line, and as TensorBoard's events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..reports.events import Events
from ..storage.files import replacing
from ..training.fit import Row

LOG_NAME = "training.jsonl"


class TrainingLog:
    """A file that is replaced after every epoch, and holds what the checkpoint of a training does."""

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder / LOG_NAME
        self._events: Events | None = None

    def write(self, number: int, rows: Sequence[Row], *, taught: bool) -> None:
        """All epochs so far of the training of this number, and whether it learns from the dense network."""
        earlier = [row for row in self._lines() if row["round"] < number]
        ours = [{"round": number, **row, "taught": taught} for row in rows]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in (*earlier, *ours)), encoding="utf-8")
        step = len(earlier) + len(rows)
        if self._events is None:
            self._events = Events(self._folder / "tensorboard", step)
        scalars = {key: ours[-1][key] for key in ("loss", "score", "learning_rate", "seconds")}
        self._events.write(step, {f"train/{key}": value for key, value in scalars.items() if value is not None})

    def images(self, *, taught: bool = False) -> int:
        """Training images that were seen; with `taught` those that the dense network was asked about."""
        return sum(row["images"] for row in self._lines() if row["taught"] or not taught)

    def seconds(self) -> float:
        """That all epochs took, of whichever process."""
        return round(sum(float(row["seconds"]) for row in self._lines()), 3)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._events is not None:
            self._events.close()

    def _lines(self) -> list[Row]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        try:
            rows = [json.loads(line) for line in text.splitlines()]
            if all({"round", "images", "taught", "seconds"} <= row.keys() for row in rows):
                return rows
        except (ValueError, TypeError, AttributeError):
            pass
        raise ValueError(f"{self._path} is damaged: delete it, it is only looked at")
