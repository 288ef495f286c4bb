"""PyTorch's own compiler: `torch.compile` of a `.pt2` file, kernels fused and generated for this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .eager import Eager
from .registry import RUNTIMES
from .runtime import converted, quietly
from .timing import Run

COMPILERS = ("g++", "clang++", "cl")  # what torch.compile writes its kernels for


class Compile(Eager):
    """The file that `Eager` writes; the network in it is compiled when it runs first, for that size of a batch."""

    format = "compile"
    loading = """\
import torch

network = torch.compile(torch.export.load("{file}").module())
outputs = network({arrays})"""

    def open(self, path: Path, threads: int | None = None) -> Run:
        """Threads are torch's, whoever sets them. What is compiled stays in torch's own cache.

        Raises:
            ValueError: from the run, where the compiler does not take it; in one line.
        """
        with quietly():
            network = torch.compile(torch.export.load(path).module(), options={"compile_threads": 1})

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            with converted("torch.compile", "set latency.runtime=eager"), torch.inference_mode():
                outputs = network(*tensors)
            return [outputs] if isinstance(outputs, Tensor) else list(outputs)

        return run

    def check_installed(self) -> None:
        """Whether there is a compiler.

        Raises:
            ValueError: there is none.
        """
        if not any(map(shutil.which, (os.environ.get("CXX") or COMPILERS[0], *COMPILERS[1:]))):
            raise ValueError(
                f"torch.compile needs a compiler of C++ ({', '.join(COMPILERS)}), and none is on the PATH: install "
                "one, name it in CXX, or set latency.runtime=eager"
            )


RUNTIMES.register("compile")(Compile())
