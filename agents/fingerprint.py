"""What the figures of a log depend on: written with them, and compared when a run goes on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDING = ("versions", "machine")  # parts that move figures by a rounding error, if at all


@dataclass(frozen=True)
class Fingerprint:
    """What the figures of a log depend on.

    A run goes on only where nothing of it differs: old and new figures would be mixed, and the search would not be the
    one that was begun. There are three exceptions.

    * Versions of torch and other libraries, and the number of threads, move figures by rounding errors; they are named
      in a RuntimeWarning, for the run may then end otherwise than an uninterrupted one. The package's own version must
      be the same but for its last number, since plans, rewards and draws may be made otherwise in another.
    * `agent.learning_rate` may be lower: so goes on what an agent ended that had diverged.
    * A key that only one of the two knows is not compared: the other was written before there was one.

    Attributes:
        parts: part → key → value, plain data.
    """

    parts: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """A hash of what must not differ at all."""
        parts = {part: values for part, values in self.parts.items() if part not in ROUNDING}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def check(self, logged: Mapping[str, Mapping[str, Any]], path: Path) -> None:
        """Whether lines of today go with those that are there.

        Args:
            logged: the parts that a log holds.
            path: of the log.

        Raises:
            ValueError: no; part, key and both values are named.
        """
        refused: dict[str, list[str]] = {}
        for part, key, was, now in self._differences(logged):
            if part in ROUNDING and not (key == "secateur" and _series(was) != _series(now)):
                warnings.warn(
                    f"{path}: {key} was {was}, is {now} now: figures may differ in their last digits, and the run may "
                    "end otherwise than it would have",
                    RuntimeWarning,
                    stacklevel=4,
                )
            elif not (key == "agent.learning_rate" and isinstance(was, float) and now < was):
                refused.setdefault(part, []).append(f"{key} was {was!r}, is {now!r} now")
        if refused:
            parts = "; ".join(f"other {part} ({', '.join(found)})" for part, found in refused.items())
            raise ValueError(
                f"{path} was made with {parts}: figures of both would be mixed; go on with what it was made with, or "
                "start a new run in another folder (--out)"
            )

    def _differences(self, logged: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any, Any]]:
        for part, values in self.parts.items():
            before = logged.get(part, {})
            for key, now in values.items():
                if key in before and before[key] != now:
                    yield part, key, before[key], now


def _series(version: str) -> list[str]:
    return str(version).split(".")[:2]
