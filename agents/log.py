"""What a search has judged, as JSON lines: on disk before the next is judged, and the files a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..envs import Evaluation
from ..pruners.layers import Structure
from .allocators import Widths
from .learner import Episode

LOG_NAME = "episodes.jsonl"
CANDIDATES_NAME = "candidates.jsonl"


class WidthsLog:
    """Appends one JSON line a judged plan and reads them back.

    A process killed while writing leaves a torn last line: it is dropped on reading, and that plan is judged again.
    Anything else that does not parse is refused by line number.
    """

    def __init__(self, path: Path, keys: Collection[str]):
        self.path = path
        self.keys = {"widths", "reward", *keys}

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
            if len(record["widths"]) != layers:
                raise ValueError(
                    f"{self.path} is of a network of {len(record['widths'])} layers, this one has {layers}: "
                    "resume with the run's own config"
                )
        return records

    def _parse(self, text: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(text.splitlines()):
            try:
                record = json.loads(line)
                complete = self.keys <= record.keys() and record.get("episode", number) == number
                complete = complete and all(isinstance(width, int) for width in record["widths"])
            except (ValueError, AttributeError, TypeError):
                complete = False
            if not complete:
                raise ValueError(
                    f"{self.path}, line {number + 1} is damaged: delete that line and all below it, then resume"
                )
            yield record


class EpisodeLog(WidthsLog):
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
                "widths": [int(w) for w in episode.widths],
                "ratios": [
                    1.0 - int(w) / layer.width for w, layer in zip(episode.widths, structure.layers, strict=True)
                ],
                **episode.evaluation.as_dict(),
                "terms": episode.terms,
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
        if episode.widths.tolist() != record["widths"]:
            raise ValueError(
                f"{self.path}, line {episode.number + 1}: its actions give other widths now, with other settings or "
                "another version than it was made with; resume with those, or start a new run"
            )


class CandidateLog(WidthsLog):
    """The candidates that search allocators judge.

    A comparison that goes on proposes the same candidates again; they are not written twice.

    Attributes:
        known: widths → evaluation of what the file held when it was opened.
    """

    def __init__(self, path: Path, layers: int):
        super().__init__(path, {"allocator", "seed", *Evaluation.__dataclass_fields__})
        past = self.read(layers)
        self.known = {tuple(record["widths"]): evaluation_of(record) for record in past}
        self._written = {(record["allocator"], record["seed"], tuple(record["widths"])) for record in past}

    def append(self, allocator: str, seed: int, widths: Widths, evaluation: Evaluation, reward: float) -> None:
        """Write one candidate of an allocator."""
        if (allocator, seed, tuple(widths.tolist())) not in self._written:
            about = {"allocator": allocator, "seed": seed, "widths": widths.tolist()}
            self.write({**about, **evaluation.as_dict(), "reward": reward})


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """What a logged candidate was found to be worth."""
    return Evaluation(**{name: float(record[name]) for name in Evaluation.__dataclass_fields__})
