"""What a search has evaluated, as JSON lines: on disk before the next one, and what a run resumes from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..envs import Evaluation
from ..pruners.structure import Kept, Structure
from ..storage.reading import parse_json, regular, shown, validated
from .fingerprint import Fingerprint
from .learner import Episode

LOG_NAME = "episodes.jsonl"
CANDIDATES_NAME = "candidates.jsonl"


class Line(BaseModel):
    """What every line holds; the rest is its log's own, and what other versions add is left alone."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    kept: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    quality: float
    fingerprint: dict[str, dict[str, Any]] = {}
    check: str = ""


class _Evaluated(Line):
    accuracy: Annotated[float, Field(ge=0.0, le=100.0)]
    reconstruction_loss: Annotated[float, Field(ge=0.0)]
    flops: Annotated[float, Field(ge=0.0)]
    params: Annotated[float, Field(ge=0.0)]


class _EpisodeLine(_Evaluated):
    episode: Annotated[int, Field(ge=0)]
    actions: list[Annotated[float, Field(ge=-1.0, le=1.0)]]
    terms: dict[str, float]
    reward: float | None = None
    noise: float
    seconds: float


class _CandidateLine(_Evaluated):
    allocator: str
    seed: int


class PlanLog:
    """Appends one JSON line for every evaluated plan and reads them back.

    A process killed while writing leaves a torn last line: it is dropped on reading, and that plan is evaluated again.
    Anything else that does not parse is refused by line number; so is a line that was changed, moved or taken out from
    between others, for each holds a `check` of itself (but for its `seconds`) and of all above. Two logs whose last
    checks are equal say the same. The first line also holds the `fingerprint` of what its figures depend on; lines of
    version 0.1 have neither, and are read as they are.

    Args:
        path: of the file.
        line: what every line must be.
        fingerprint: of what is appended; it must go with what is there.
    """

    def __init__(self, path: Path, line: type[Line], fingerprint: Fingerprint | None = None):
        self.path = path
        self.line = line
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
        if not self.path.exists():
            return []
        text, whole = self._whole()
        records = list(self._parse(whole))
        if whole != text and not text[len(whole) :].startswith(b"{"):  # whatever it is, it was not being written
            raise self._damaged(len(records), "no line of a log")
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
        return _bare(records)

    def records(self) -> list[dict[str, Any]]:
        """The records so far, of whatever network and settings; the file is only read.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a line is damaged or was changed.
        """
        return _bare(list(self._parse(self._whole()[1])))

    def settings(self) -> dict[str, dict[str, Any]] | None:
        """The fingerprint that is written there, empty where none was; none where there is no line yet.

        Raises:
            ValueError: a line is damaged or was changed.
        """
        records = list(self._parse(self._whole()[1])) if self.path.exists() else []
        return next((record["fingerprint"] for record in records if "fingerprint" in record), {}) if records else None

    def _whole(self) -> tuple[bytes, bytes]:
        """The file, and of it the lines that are whole."""
        text = regular(self.path).read_bytes()
        return text, text[: text.rfind(b"\n") + 1]

    def _parse(self, text: bytes) -> Iterator[dict[str, Any]]:
        checked = False
        for number, line in enumerate(text.splitlines()):
            try:
                given = parse_json(line.decode("utf-8"), "it")
                record = _from_schema_1(given) if isinstance(given, dict) else given
                validated(self.line, record, "it")
            except ValueError as error:
                raise self._damaged(number, str(error)) from None
            if record.get("episode", number) != number:
                raise self._damaged(number, f"it is episode {record['episode']}")
            if len(record.get("actions", record["kept"])) != len(record["kept"]):
                raise self._damaged(number, "it has more actions than layers, or fewer")
            self._check = _check(self._check, given)
            checked = checked or "check" in given  # an old run that went on has none at first
            if checked and given.get("check") != self._check:
                raise ValueError(
                    f"{self.path}, line {number + 1} is not what was written there: it or a line above it was changed, "
                    "moved or taken out; restore the file, or delete that line and all below it, then resume"
                )
            yield record

    def _damaged(self, number: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}, line {number + 1} is damaged: delete that line and all below it, then resume ({reason})"
        )


def _bare(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what the log itself needs."""
    return [{key: value for key, value in record.items() if key not in ("check", "fingerprint")} for record in records]


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """What an `EpisodeLog` holds, for whoever only looks; see `PlanLog.records`."""
    return PlanLog(path, _EpisodeLine).records()


def read_candidates(path: Path) -> list[dict[str, Any]]:
    """What a `CandidateLog` holds, for whoever only looks; see `PlanLog.records`."""
    return PlanLog(path, _CandidateLine).records()


def _check(previous: str, record: Mapping[str, Any]) -> str:
    """Of a line, without its own and its time, and of the check of the line above."""
    content = {key: value for key, value in record.items() if key not in ("check", "seconds")}
    return hashlib.sha256((previous + json.dumps(content, sort_keys=True)).encode()).hexdigest()[:16]


class EpisodeLog(PlanLog):
    """The episodes of a training."""

    def __init__(self, path: Path, fingerprint: Fingerprint | None = None):
        super().__init__(path, _EpisodeLine, fingerprint)

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
        if episode.kept.tolist() != record["kept"]:
            raise ValueError(
                f"{self.path}, line {episode.number + 1}: its actions give another plan now, with other settings "
                "or another version than it was made with; resume with those, or start a new run"
            )
        found = {"quality": episode.quality, "reward": episode.reward}
        for name in found:
            if record.get(name) is not None and not _is_close(found[name], record[name]):
                raise ValueError(
                    f"{self.path}, line {episode.number + 1}: {name} = {shown(record[name])}, where its figures give "
                    f"{found[name]:g} now: the line was changed, or the run goes on with another config or version"
                )


class CandidateLog(PlanLog):
    """The candidates that search allocators have evaluated.

    A comparison that goes on proposes the same candidates again; they are not written twice.

    Attributes:
        known: kept → evaluation of what the file held when it was opened.
    """

    def __init__(self, path: Path, layers: int, fingerprint: Fingerprint | None = None):
        super().__init__(path, _CandidateLine, fingerprint)
        past = self.read(layers)
        self.known = {tuple(record["kept"]): evaluation_of(record) for record in past}
        self._written = {(r["allocator"], r["seed"], tuple(r["kept"])): float(r["quality"]) for r in past}

    def append(self, allocator: str, seed: int, kept: Kept, evaluation: Evaluation, quality: float) -> None:
        """Write one candidate of an allocator.

        Raises:
            ValueError: it is there, and its quality is not what its figures give.
        """
        known = self._written.get((allocator, seed, tuple(kept.tolist())))
        if known is not None and not _is_close(known, quality):
            raise ValueError(
                f"{self.path}: {allocator}'s {shown(kept.tolist())} has quality {known:g}, where its figures give "
                f"{quality:g} now: the line was changed; start a new comparison"
            )
        if known is None:
            about = {"allocator": allocator, "seed": seed, "kept": kept.tolist()}
            self.write({**about, **evaluation.as_dict(), "quality": quality})


def _from_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """A line of version 0.1 in today's words: its reward was what is called quality now."""
    if "widths" in record and "kept" not in record:
        record = {**record, "kept": record["widths"], "quality": record.get("reward")}
        for gone in ("widths", "reward"):
            record.pop(gone, None)
    return record


def _is_close(one: float, other: float) -> bool:
    """The same but for what machines round otherwise."""
    return isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """What a logged candidate was found to be worth."""
    return Evaluation(**{name: float(record[name]) for name in Evaluation.__dataclass_fields__})
