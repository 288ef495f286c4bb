"""`secateur report`: one HTML page of a run, or of several; it opens offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..reports.html import write_page, write_report
from ..reports.run import SWEEP_NAME, is_chain, is_finished, is_run, read_run
from ..storage.folders import REPORT_NAME

DEEPEST = 4  # folders below one that was given, in which runs are looked for
MOST_RUNS = 100  # in a page that a person is to read


def report(*folders: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, or a page that joins several.

    Finished runs that have no report of their own get one. Files of other kinds are never overwritten; a report is.

    Args:
        folders: run folders of `train`, `apply`, `compare` or `plan`, or folders that hold some.
        out: the page; none takes `report.html` in the folder of the run, or of the comparisons at several budgets, and
            of several others in the working directory.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no run is there, or a file of one is damaged, or `out` is something else than a report.
    """
    if not folders:
        raise ValueError("nothing to report on: give a run folder, or one that holds some")
    found = list(dict.fromkeys(run for folder in folders for run in _runs_in(Path(folder))))
    if len(found) > MOST_RUNS:
        raise ValueError(f"{len(found)} runs are more than the {MOST_RUNS} that a page joins: give some of the folders")
    for folder in found:
        if is_finished(folder) and not (folder / REPORT_NAME).exists():
            write_report(folder)
    if out is None:
        alone = found[0] if len(found) == 1 else _sweep(folders)
        out = Path(REPORT_NAME) if alone is None else alone / REPORT_NAME
    elif Path(out).is_dir():
        raise ValueError(f"--out {out}: it is a folder; give a file, as in {Path(out) / REPORT_NAME}")
    return write_page([read_run(folder) for folder in found], Path(out))


def _sweep(folders: Sequence[str | Path]) -> Path | None:
    """The folder of comparisons at several budgets, where one alone was given."""
    own = Path(folders[0])
    return own if len(folders) == 1 and (own / SWEEP_NAME).is_file() else None


def _runs_in(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that secateur train, apply or compare wrote")
    found = list(_walk(folder, DEEPEST))
    if not found:
        raise ValueError(f"{folder}: no run of train, apply, compare or plan is there, or in the folders below it")
    return found


def _walk(folder: Path, deep: int) -> Iterator[Path]:
    """A run comes before those inside it, several plans stand for their stages; links are not followed."""
    if is_run(folder):
        yield folder
    below = folder.iterdir() if deep and not is_chain(folder) else ()
    inner = sorted(path for path in below if path.is_dir() and not path.is_symlink())
    for path in inner:
        yield from _walk(path, deep - 1)
