"""Output folders: where results go, that none is overwritten, and that one process at a time writes there."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import is_temporary, sweep
from .lock import LOCK_NAME, alone, is_held
from .reading import regular

CONFIG_NAME = "config.yaml"
BEGUN_NAME = "apply.json"
SWEEP_BEGUN_NAME = "budgets.json"
KEPT = {f"{name}.safetensors{end}" for name in ("dense", "early") for end in ("", ".sha256")}
FIRST = {BEGUN_NAME, "plan.json", *KEPT}  # before the config: nothing is lost
ABOUT_NAME = "about.json"  # which command on which machine
REPORT_NAME = "report.html"
CHAIN_BEGUN_NAME = "chain-begun.json"  # several plans, one after the other
CHAIN_STAGES_NAME = "stages"  # plan and config of each
FINETUNED_NAME = "finetune"  # what is kept of the fine-tuning of several plans

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free(out: str | Path | None) -> None:
    """Refuse a folder that is taken before any work is done for it.

    Raises:
        ValueError: `out` is a file, or holds something already.
    """
    folder = Path(out) if out is not None else None
    if folder is not None and not _empty(folder):
        what = "is a file" if not folder.is_dir() else "is not empty, and nothing is overwritten"
        raise ValueError(f"--out {folder}: it {what}; choose another folder (a run goes on with --resume {folder})")


def free_folder(out: str | Path | None, default: Path) -> Path:
    """An empty folder, or one that is not there yet: `out`, or the first free one of default, default-2, …

    Raises:
        ValueError: `out` is a file, or holds something already.
    """
    if out is not None:
        check_free(out)
        return Path(out)
    number = 1
    while True:
        folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
        if _empty(folder) and not is_held(folder):
            return folder
        number += 1


def new_folder(out: str | Path | None, default: Path) -> Path:
    """`free_folder`, made.

    Raises:
        ValueError: `out` is a file, or holds something already.
    """
    folder = free_folder(out, default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, for the block to fill; it takes the place of `out` when the block ends well.

    A process killed at any point leaves the folder whole or none, and at most a `.NAME.….tmp` beside it.

    Args:
        out: empty, or not there yet.

    Raises:
        ValueError: somebody else has written there since.
    """
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_free(out)
        if out.exists():
            shutil.rmtree(out)  # an empty one, perhaps with what a killed process left
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def existing_run(folder: str | Path, command: str) -> Path:
    """The folder of a run that a command goes on with.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder)
    if not (path / CONFIG_NAME).is_file():
        raise ValueError(
            f"--resume {path}: no run there (no {CONFIG_NAME}); start one with secateur {command} --out {path}"
        )
    return path


def interrupted_run(folder: str | Path, command: str, result: str) -> Path:
    """The folder of a run that has not yet written its result.

    Raises:
        ValueError: there is none, or it is finished.
    """
    path = existing_run(folder, command)
    if (path / result).exists():
        raise ValueError(f"--resume {path}: that run is finished; start another one in a new folder")
    return path


@contextmanager
def claimed(folder: Path, command: str, log: str, *, new: bool) -> Iterator[Path]:
    """The folder of a run while it is written to: by one writer alone, and without what a killed one left half done.

    What was made new goes away again if an error comes before there is anything to go on with.

    Args:
        folder: a run's to go on with, or free; made if it is not there.
        command: that resumes it.
        log: its file of what was achieved.
        new: whether the run begins here: then nobody else may have begun one since the folder was found free.

    Raises:
        ValueError: somebody else writes there, or what is appended to is no file, or a link to somewhere else.
        OSError: the disk is full; in one line.
    """
    for path in (folder / name for name in (LOCK_NAME, log, "tensorboard", FINETUNED_NAME, "repaired")):
        if path.is_symlink():  # in a folder of somebody else's making it may lead to any file of yours
            raise ValueError(f"{path} is a link, and would be written through: put what it leads to in its place")
    for path in (folder / LOCK_NAME, folder / log):
        if path.exists():
            regular(path)  # a pipe would be waited for without end
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone(folder):
            if new:
                check_free(folder)
            sweep(folder)
            try:
                yield folder
            except BaseException:
                if new and not any((folder / name).exists() for name in (log, FINETUNED_NAME)):
                    _clear(folder, made)
                raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        again = f"--resume {folder}" if folder.exists() else "again"  # what was finished is kept
        raise OSError(
            f"disk full: {folder} cannot be written ({error.strerror}): free space, then secateur {command} {again}"
        ) from error


def _empty(folder: Path) -> bool:
    """Whether nothing is there, or nothing but what a process left that was killed before it had written anything."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if path.name != LOCK_NAME and not is_temporary(path)}
    return not names or (BEGUN_NAME in names and names <= FIRST)


def _clear(folder: Path, made: list[Path]) -> None:
    with suppress(OSError):  # something else may be there by now
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for path in made:
            path.rmdir()
