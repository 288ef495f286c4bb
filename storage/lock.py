"""One writer a folder: a lock file that names who holds it."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK_NAME = ".lock"

PATIENCE = 5.0  # seconds that a lock file may be there with nothing in it


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: a file that only one can create (O_EXCL), on network file systems too; it names the owner.

    The system's own locks would end with the process, however that ends; but they do not hold between two calls of one
    process, and some network file systems have none, or none that other machines see. So the file outlives a process
    that was killed: it is taken over where its owner is known to be gone, that is on the same host, where no process of
    its number has been running since its start.

    Raises:
        ValueError: somebody writes there; the line names the host and the process.
        OSError: the file cannot be written.
    """
    path = folder / LOCK_NAME
    mine = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == mine:
                path.unlink()


def is_held(folder: Path) -> bool:
    """Whether somebody writes there, as far as can be seen from here."""
    return _owner(_read(folder / LOCK_NAME)) is not None


def _take(path: Path) -> str:
    about = {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid()), "key": secrets.token_hex(8)}
    mine = json.dumps(about)
    with _one_at_a_time(path.parent):
        text = _read(path)
        if (owner := _owner(text)) is not None:
            raise ValueError(_refusal(path, owner))
        if text is not None:
            _remove(path, text)
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:  # another's, since
            raise ValueError(_refusal(path, _owner(_read(path)) or {})) from None
        try:
            with file:
                file.write(mine)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return mine


def _remove(path: Path, text: str) -> None:
    """Put aside what a process left that is gone, unless another has taken the folder since it was read."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_text(encoding="utf-8", errors="replace") != text:
            aside.rename(path)
        aside.unlink(missing_ok=True)


def _refusal(path: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    if owner.get("host") != platform.node():
        return f"{path.parent}: {who} writes there; wait for it, or, if it is no more, delete {path}"
    mine = "this process writes there already" if owner["pid"] == os.getpid() else "another process writes there"
    return f"{path.parent}: {mine} ({who}); wait for it, or choose another folder"


def _read(path: Path) -> str | None:
    """What a lock file says; none if there is none."""
    if not path.is_file():
        return None
    end = time.monotonic() + PATIENCE
    try:
        while not (text := path.read_text(encoding="utf-8", errors="replace")) and time.monotonic() < end:
            time.sleep(PATIENCE / 100)  # another may be about to write it
    except FileNotFoundError:
        return None
    return text


def _owner(text: str | None) -> dict[str, Any] | None:
    """Who holds a lock; none if there is no lock, or its owner is gone.

    What names nobody is the lock of a process that was killed while it wrote it, or of version 0.1.
    """
    try:
        owner = dict(json.loads(text or ""))
        host, pid, started = str(owner["host"]), int(owner["pid"]), owner["started"]
    except (ValueError, KeyError, TypeError):
        return None
    return None if host == platform.node() and _started(pid) != started else owner


def _started(pid: int) -> str | None:
    """When a process of this host began, as no later one of that number did; none if there is none, or a dead one."""
    if sys.platform == "win32":
        return "unknown"  # so that nobody is ever held for gone
    if not Path("/proc/self/stat").exists():
        found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"  # a zombie is dead; the 22nd field, in clock ticks


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of this host, where its file system can: or two could take over what a third one left."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
