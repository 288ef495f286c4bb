"""What goes wrong outside: a full disk, a process that is killed while it writes."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import secateur


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk: the system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_and_die(command: str, cache: str, at: int, session: Mapping[str, Any], **arguments: Any) -> None:
    """Call a command, and kill the process at its so-manieth write: before the disk has it, or just after.

    A line that is being appended is torn. At 0, it lives. `session` holds what makes one.
    """
    os.environ["SECATEUR_CACHE"] = cache
    torch.set_num_threads(1)
    left = at
    fsync, replace = os.fsync, Path.replace

    def tick(file: int | None = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if file is not None and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND:
                os.ftruncate(file, os.fstat(file).st_size - 20)
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_fsync(file: int) -> None:
        tick(file)
        fsync(file)

    def deadly_replace(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        tick()
        return moved

    os.fsync, Path.replace = deadly_fsync, deadly_replace  # type: ignore[assignment, method-assign]
    getattr(secateur, command)(session=secateur.Session(**session), **arguments)
