"""TensorBoard events, in its own format."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Events:
    """One more events file in a folder; every step is handed to the system before `write` returns.

    `SummaryWriter` leaves that to a thread: a kill loses two minutes, and a full disk ends in the thread's traceback.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        """Open the file; what the folder's other files hold from `first_step` on no longer counts."""
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{platform.node()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=first_step, session_log=restart))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write a step's scalars.

        Raises:
            OSError: the disk is full, or the like.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()
