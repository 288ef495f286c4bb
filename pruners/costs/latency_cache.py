"""Segments' times on disk: what was measured once on this machine is looked up from then on."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ...configs import LatencyConfig
from ...storage.cache import cache_folder
from ...storage.files import write_json


class LatencyCache:
    """One readable JSON file for everything that was measured alike, in the folder `latency` of `cache_folder()`.

    Attributes:
        about: what "alike" means: machine, torch, threads, batch, passes, memory format. The file's name, too.
        path: of the file.
        times: microseconds by a segment's key. A damaged file is none, with a RuntimeWarning.
    """

    def __init__(self, device: torch.device, config: LatencyConfig):
        self.about: dict[str, str | int] = {
            "machine": _machine(device),
            "torch": torch.__version__,
            "threads": config.threads or torch.get_num_threads(),
            "batch": config.batch,
            "repeats": config.repeats,
            "memory_format": "channels_last" if config.channels_last else "contiguous",
        }
        name = "{machine} torch {torch} {threads} threads batch {batch} {repeats} repeats {memory_format}"
        slug = re.sub(r"[^a-z0-9.]+", "-", name.format(**self.about).lower())
        self.path = cache_folder() / "latency" / f"{slug}.json"
        self.times = self._read()

    def add(self, times: Mapping[str, float]) -> None:
        """Keep more times; where another process was first, its are taken, so that a run's table stays the same."""
        self.times = {**self.times, **times, **self._read()}
        try:
            write_json(self.path, {**self.about, "microseconds": dict(sorted(self.times.items()))})
        except OSError as error:
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror}): latency will be measured anew the next time; set "
                "SECATEUR_CACHE to a folder that can",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self) -> dict[str, float]:
        if not self.path.is_file():
            return {}
        try:
            return _checked(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"{self.path} is damaged ({reason}): latency is measured anew", RuntimeWarning, stacklevel=2)
            return {}


def _checked(tree: dict[str, dict[str, float]]) -> dict[str, float]:
    times = {key: float(value) for key, value in tree["microseconds"].items()}
    for key, value in times.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{key} takes {value} microseconds")
    return times


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
