"""episodes.jsonl: every episode on disk before the next begins; the file a run resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..envs import Evaluation
from ..pruners.layers import Structure
from .learner import Episode

LOG_NAME = "episodes.jsonl"


class EpisodeLog:
    """Appends one JSON line an episode and reads them back.

    A process killed while writing leaves a torn last line: it is dropped on reading, and that episode is walked
    again. Anything else that does not parse is refused by line number.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, episode: Episode, structure: Structure) -> None:
        """Write one line and wait until it is on the disk."""
        line = json.dumps(
            {
                "episode": episode.number,
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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, layers: int) -> list[dict[str, Any]]:
        """The episodes so far; a torn last line is cut off the file.

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
            if len(record["actions"]) != layers:
                raise ValueError(
                    f"{self.path} is of a network of {len(record['actions'])} layers, this one has {layers}: "
                    "resume with the run's own config"
                )
        return records

    def _parse(self, text: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(text.splitlines()):
            try:
                record = json.loads(line)
                complete = record["episode"] == number and {"actions", "widths", "reward"} <= record.keys()
            except (ValueError, KeyError, TypeError):
                complete = False
            if not complete:
                raise ValueError(
                    f"{self.path}, line {number + 1} is damaged: delete that line and all below it, then resume"
                )
            yield record


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """What a logged candidate was found to be worth."""
    return Evaluation(**{name: float(record[name]) for name in Evaluation.__dataclass_fields__})
