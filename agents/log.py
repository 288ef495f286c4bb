"""What a search has evaluated, as JSON lines: on disk before the next one, and what a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..envs import Evaluation
from ..pruners.structure import Kept, Structure
from .learner import Episode

LOG_NAME = "episodes.jsonl"
CANDIDATES_NAME = "candidates.jsonl"


class PlanLog:
    """Appends one JSON line for every evaluated plan and reads them back.

    A process killed while writing leaves a torn last line: it is dropped on reading, and that plan is evaluated again.
    Anything else that does not parse is refused by line number.
    """

    def __init__(self, path: Path, keys: Collection[str]):
        self.path = path
        self.keys = {"kept", "quality", *keys}

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, layers: int) -> list[dict[str, Any]]:
        """The records so far; a torn last line is cut off the file.

        Raises:
            ValueError: a line in the middle is damaged, or the run was for another network.
        """
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        records = list(self._parse(whole))
        for record in records:
            if len(record["kept"]) != layers:
                raise ValueError(
                    f"{self.path} is of a network of {len(record['kept'])} layers, this one has {layers}: "
                    "resume with the run's own config"
                )
        return records

    def _parse(self, text: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(text.splitlines()):
            try:
                record = _from_schema_1(json.loads(line))
                complete = self.keys <= record.keys() and record.get("episode", number) == number
                complete = complete and all(isinstance(count, int) for count in record["kept"])
            except (ValueError, AttributeError, TypeError):
                complete = False
            if not complete:
                raise ValueError(
                    f"{self.path}, line {number + 1} is damaged: delete that line and all below it, then resume"
                )
            yield record


class EpisodeLog(PlanLog):
    """The episodes of a training."""

    def __init__(self, path: Path):
        super().__init__(path, {"episode", "actions", "terms", "noise", "seconds", *Evaluation.__dataclass_fields__})

    def append(self, episode: Episode, structure: Structure) -> None:
        """Write one episode."""
        self.write(
            {
                "episode": episode.number,
                "budget": episode.budget,
                "actions": [float(a) for a in episode.actions],
                "kept": [int(k) for k in episode.kept],
                "sparsity": [
                    1.0 - int(k) / layer.units for k, layer in zip(episode.kept, structure.layers, strict=True)
                ],
                **episode.evaluation.as_dict(),
                "terms": episode.terms,
                "quality": episode.quality,
                "reward": episode.reward,
                "noise": episode.noise,
                "seconds": round(episode.seconds, 4),
            }
        )

    def check(self, episode: Episode, record: Mapping[str, Any]) -> None:
        """Make sure that an episode came out of the replay as it was logged.

        Raises:
            ValueError: it did not.
        """
        if episode.kept.tolist() != record["kept"]:
            raise ValueError(
                f"{self.path}, line {episode.number + 1}: its actions give another plan now, with other settings or "
                "another version than it was made with; resume with those, or start a new run"
            )


class CandidateLog(PlanLog):
    """The candidates that search allocators have evaluated.

    A comparison that goes on proposes the same candidates again; they are not written twice.

    Attributes:
        known: kept → evaluation of what the file held when it was opened.
    """

    def __init__(self, path: Path, layers: int):
        super().__init__(path, {"allocator", "seed", *Evaluation.__dataclass_fields__})
        past = self.read(layers)
        self.known = {tuple(record["kept"]): evaluation_of(record) for record in past}
        self._written = {(record["allocator"], record["seed"], tuple(record["kept"])) for record in past}

    def append(self, allocator: str, seed: int, kept: Kept, evaluation: Evaluation, quality: float) -> None:
        """Write one candidate of an allocator."""
        if (allocator, seed, tuple(kept.tolist())) not in self._written:
            about = {"allocator": allocator, "seed": seed, "kept": kept.tolist()}
            self.write({**about, **evaluation.as_dict(), "quality": quality})


def _from_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """A line of version 0.1 in today's words: its reward was what is called quality now."""
    if "widths" in record and "kept" not in record:
        record = {**record, "kept": record["widths"], "quality": record.get("reward")}
        record.pop("widths")
    return record


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """What a logged candidate was found to be worth."""
    return Evaluation(**{name: float(record[name]) for name in Evaluation.__dataclass_fields__})
