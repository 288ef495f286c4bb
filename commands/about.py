"""Which command a run is of, with which versions on which machine: for whoever reads its report."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..pruners.costs.latency_cache import machine
from ..storage.files import package_versions, write_json
from ..storage.folders import ABOUT_NAME
from ..storage.reading import read_json
from .options import COMMAND

if TYPE_CHECKING:
    from .session import Session


def record(session: Session, folder: Path) -> None:
    """Note in a run folder that it is begun, or gone on with, now and here; what was noted before stays.

    Raises:
        ValueError: what was noted is damaged.
    """
    path = folder / ABOUT_NAME
    now = {"command": COMMAND.get(), "versions": package_versions(), "machine": _here(session)}
    write_json(path, {"runs": [*_noted(path), now]})


def _noted(path: Path) -> list[Any]:
    if not path.exists():
        return []
    tree = read_json(path)
    if isinstance(tree, dict) and isinstance(tree.get("runs"), list):
        return list(tree["runs"])
    raise ValueError(f"{path} is damaged (no list of runs): delete it, it is only looked at")


def _here(session: Session) -> dict[str, str | int]:
    device = torch.device(session.config.device)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": machine(torch.device("cpu")),
        **({} if device.type == "cpu" else {"device": machine(device)}),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
    }
