"""Segments' times on disk: what was measured once on this machine is looked up from then on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from ...configs import LatencyConfig
from ...storage.cache import cache_folder
from ...storage.files import write_json
from ...storage.reading import read_json, validated
from .latency_files import in_torch, runtime_of


class LatencyCache:
    """One readable JSON file for everything that was measured alike, in the folder `latency` of `cache_folder()`.

    Attributes:
        about: what "alike" means: machine, torch, threads, batch, passes, memory format; in another runtime than torch
            that, its precision and versions. The file's name, too.
        path: of the file.
        times: microseconds by a segment's key. A damaged file is none, with a RuntimeWarning.
    """

    def __init__(self, device: torch.device, config: LatencyConfig):
        self.about: dict[str, str | int] = {
            "machine": machine(device),
            "torch": torch.__version__,
            "threads": config.threads or torch.get_num_threads(),
            "batch": config.batch,
            "repeats": config.repeats,
            "memory_format": "channels_last" if config.channels_last else "contiguous",
        }
        name = "{machine} torch {torch} {threads} threads batch {batch} {repeats} repeats {memory_format}"
        if not in_torch(config):
            versions = runtime_of(config).versions()
            self.about["runtime"] = " ".join([config.runtime, config.precision, *map(" ".join, versions.items())])
            name += " {runtime}"
        slug = re.sub(r"[^a-z0-9.]+", "-", name.format(**self.about).lower())
        self.path = cache_folder() / "latency" / f"{slug}.json"
        self.times = self._read()

    def add(self, times: Mapping[str, float]) -> None:
        """Keep more times; where another process was first, its are taken, so that a run's table stays the same."""
        self.times = {**self.times, **times, **self._read()}
        try:
            times = dict(sorted(self.times.items()))
            write_json(self.path, {**self.about, "microseconds": times, "sha256": _sha256(times)})
        except OSError as error:
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror}): latency will be measured anew the next time; set "
                "SECATEUR_CACHE to a folder that can",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self) -> dict[str, float]:
        try:
            found = validated(_Times, read_json(self.path), str(self.path))
            if found.model_extra != self.about:
                raise ValueError("it is of another machine, or of other settings")
            if found.sha256 not in (None, _sha256(found.microseconds)):
                raise ValueError("its checksum is wrong")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"{self.path} is damaged ({reason}): latency is measured anew", RuntimeWarning, stacklevel=2)
            return {}
        return found.microseconds


class _Times(BaseModel):
    """What the file holds besides what `about` says; older versions wrote no checksum."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    microseconds: dict[str, Annotated[float, Field(ge=0.0)]]
    sha256: str | None = None


def _sha256(times: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(times, sort_keys=True).encode()).hexdigest()


def machine(device: torch.device) -> str:
    """What computes there, by its maker's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
