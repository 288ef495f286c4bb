"""What a search has evaluated, as JSON lines: on disk before the next one, and what a run resumes from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..envs import Evaluation
from ..pruners.structure import Kept, Structure
from .fingerprint import Fingerprint
from .learner import Episode

LOG_NAME = "episodes.jsonl"
CANDIDATES_NAME = "candidates.jsonl"


class PlanLog:
    """Appends one JSON line for every evaluated plan and reads them back.

    A process killed while writing leaves a torn last line: it is dropped on reading, and that plan is evaluated again.
    Anything else that does not parse is refused by line number; so is a line that was changed, moved or taken out from
    between others, for each holds a `check` of itself (but for its `seconds`) and of all above. Two logs whose last
    checks are equal say the same. The first line also holds the `fingerprint` of what its figures depend on; lines of
    version 0.1 have neither, and are read as they are.

    Args:
        path: of the file.
        keys: that every line holds.
        fingerprint: of what is appended; it must go with what is there.
    """

    def __init__(self, path: Path, keys: Collection[str], fingerprint: Fingerprint | None = None):
        self.path = path
        self.keys = {"kept", "quality", *keys}
        self._fingerprint = fingerprint
        self._unmarked = fingerprint is not None  # whether the next line is to hold it
        self._check = ""  # the last line's

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on the disk; what is there must have been read."""
        whole = dict(record)
        if self._fingerprint is not None and self._unmarked:
            whole["fingerprint"] = self._fingerprint.parts
        check = _check(self._check, whole)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**whole, "check": check}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._unmarked, self._check = False, check

    def read(self, layers: int) -> list[dict[str, Any]]:
        """The records so far; a torn last line is cut off the file.

        Raises:
            ValueError: a line is damaged or was changed, or the run was made for another network or other settings.
        """
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        records = list(self._parse(whole))
        marks = [record["fingerprint"] for record in records if "fingerprint" in record]
        if marks and self._fingerprint is not None:
            self._unmarked = False
            self._fingerprint.check(marks[0], self.path)
        for record in records:
            if len(record["kept"]) != layers:
                raise ValueError(
                    f"{self.path} is of a network of {len(record['kept'])} layers, this one has {layers}: "
                    "resume with the run's own config"
                )
        if whole != text:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return records

    def _parse(self, text: bytes) -> Iterator[dict[str, Any]]:
        checked = False
        for number, line in enumerate(text.splitlines()):
            where = f"{self.path}, line {number + 1}"
            try:
                given = json.loads(line)
                record = _from_schema_1(given)
                complete = self.keys <= record.keys() and record.get("episode", number) == number
                complete = complete and all(isinstance(count, int) for count in record["kept"])
                complete = complete and all(isinstance(part, dict) for part in record.get("fingerprint", {}).values())
            except (ValueError, AttributeError, TypeError):
                complete = False
            if not complete:
                raise ValueError(f"{where} is damaged: delete that line and all below it, then resume")
            self._check = _check(self._check, given)
            checked = checked or "check" in given  # an old run that went on has none at first
            if checked and given.get("check") != self._check:
                raise ValueError(
                    f"{where} is not what was written there: it or a line above it was changed, moved or taken out; "
                    "restore the file, or delete that line and all below it, then resume"
                )
            yield record


def _check(previous: str, record: Mapping[str, Any]) -> str:
    """Of a line, without its own and its time, and of the check of the line above."""
    content = {key: value for key, value in record.items() if key not in ("check", "seconds")}
    return hashlib.sha256((previous + json.dumps(content, sort_keys=True)).encode()).hexdigest()[:16]


class EpisodeLog(PlanLog):
    """The episodes of a training."""

    def __init__(self, path: Path, fingerprint: Fingerprint | None = None):
        keys = {"episode", "actions", "terms", "noise", "seconds", *Evaluation.__dataclass_fields__}
        super().__init__(path, keys, fingerprint)

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
        """Make sure that an episode came out of the replay as it was logged: all that an old log can be asked.

        Raises:
            ValueError: it did not.
        """
        what = "actions give another plan" if episode.kept.tolist() != record["kept"] else None
        if what is None and not math.isclose(episode.quality, record["quality"], rel_tol=1e-6, abs_tol=1e-9):
            what = f"evaluation is worth {episode.quality:g}, not {record['quality']:g}"
        if what is not None:
            raise ValueError(
                f"{self.path}, line {episode.number + 1}: its {what} now, with other settings or another version than "
                "it was made with; resume with those, or start a new run"
            )


class CandidateLog(PlanLog):
    """The candidates that search allocators have evaluated.

    A comparison that goes on proposes the same candidates again; they are not written twice.

    Attributes:
        known: kept → evaluation of what the file held when it was opened.
    """

    def __init__(self, path: Path, layers: int, fingerprint: Fingerprint | None = None):
        super().__init__(path, {"allocator", "seed", *Evaluation.__dataclass_fields__}, fingerprint)
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
