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
from secateur.training.checkpoint import Checkpoint


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
    """Call a command, and kill the process at its write of number `at`: before the disk has it, or just after.

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


def run_and_die_in_epoch(command: str, cache: str, session: Mapping[str, Any], **arguments: Any) -> None:
    """Call a command, and kill the process two steps into the second epoch of a training."""
    os.environ["SECATEUR_CACHE"] = cache
    torch.set_num_threads(1)
    write, step, since = Checkpoint.write, torch.optim.SGD.step, []

    def written(self: Checkpoint, *given: Any) -> None:
        write(self, *given)
        since.append(0)

    def deadly_step(self: torch.optim.SGD) -> None:
        step(self)
        if since:
            since[-1] += 1
            if since[-1] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.write, torch.optim.SGD.step = written, deadly_step  # type: ignore[method-assign, assignment]
    getattr(secateur, command)(**({"session": secateur.Session(**session)} if session else {}), **arguments)
