"""PyTorch itself: `.pt2` files of `torch.export`, which need no source of the network's classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .program import Program
from .registry import RUNTIMES
from .runtime import KEY, About, Runtime, converted, quietly
from .timing import Run

ABOUT = f"{KEY}.json"


class Eager(Runtime):
    """Files of `torch.export`; the network runs operation by operation."""

    format = "pt2"
    suffix = ".pt2"
    loading = """\
import torch

network = torch.export.load("{file}").module()
outputs = network({arrays})"""

    def export(self, program: Program, path: Path, about: About) -> None:
        """Write the exported program."""
        with converted("torch.export.save", "save its weights instead (--format safetensors)"):
            torch.export.save(program.exported, path, extra_files={ABOUT: json.dumps(dict(about))})

    def open(self, path: Path, threads: int | None = None) -> Run:
        """Threads are torch's, whoever sets them: here they are left alone."""
        with quietly():
            module = torch.export.load(path).module()

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            with torch.inference_mode():
                outputs = module(*tensors)
            return [outputs] if isinstance(outputs, Tensor) else list(outputs)

        return run

    def about(self, path: Path) -> dict[str, str]:
        """Of the extra file."""
        files = {ABOUT: ""}
        with quietly():
            torch.export.load(path, extra_files=files)
        return dict(json.loads(files[ABOUT]))


RUNTIMES.register("eager")(Eager())
