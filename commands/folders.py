"""Output folders: where results go, and that none is overwritten."""

from __future__ import annotations

from pathlib import Path

from .task import CONFIG_NAME


def check_free(out: str | Path | None) -> None:
    """Refuse a folder that is taken before any work is done for it.

    Raises:
        ValueError: `out` is a file, or holds something already.
    """
    folder = Path(out) if out is not None else None
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is a file" if not folder.is_dir() else "is not empty, and nothing is overwritten"
        raise ValueError(f"--out {folder}: it {what}; choose another folder (a run goes on with --resume {folder})")


def new_folder(out: str | Path | None, default: Path) -> Path:
    """An empty folder to write to: `out`, or the first free one of default, default-2, …

    Raises:
        ValueError: `out` is a file, or holds something already.
    """
    if out is not None:
        check_free(out)
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        number += 1


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
