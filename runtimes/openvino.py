"""OpenVINO: its intermediate representation (`.xml` and `.bin`), and NNCF's quantisation of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .program import Program
from .registry import RUNTIMES
from .runtime import KEY, About, Runtime, converted, needed
from .timing import Run


class OpenVino(Runtime):
    """Files of `openvino.convert_model`, in single precision."""

    format = "openvino"
    suffix = ".xml"
    extra = "openvino"
    packages = ("openvino", "nncf")
    int8 = True
    loading = """\
import numpy as np
import openvino

network = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
outputs = list(network({{{inputs}}}).values())"""

    def export(self, program: Program, path: Path, about: About) -> None:
        """Write the graph and its weights, as they are, with what is said of it in `rt_info`."""
        openvino = needed("openvino", self.extra)
        with converted("openvino.convert_model", "export onnx or pt2 instead"):
            model = openvino.convert_model(program.exported)
            shapes = {i: openvino.PartialShape([-1, *t.shape[1:]]) for i, t in enumerate(program.example)}
            model.reshape(shapes)  # the converter leaves open more sizes than the batch
            for ports, names in ((model.inputs, program.inputs), (model.outputs, program.outputs)):
                for port, name in zip(ports, names, strict=True):
                    port.get_tensor().set_names({name})
            self._save(openvino, model, path, about)

    def open(self, path: Path, threads: int | None = None) -> Run:
        """On the CPU, in single precision where it is no integers: some processors would take bfloat16."""
        openvino = needed("openvino", self.extra)
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        network = openvino.Core().compile_model(str(path), "CPU", options)

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            found = network([tensor.detach().numpy() for tensor in tensors])
            return [torch.from_numpy(found[port].copy()) for port in network.outputs]  # its own it writes over

        return run

    def about(self, path: Path) -> dict[str, str]:
        """Of `rt_info`."""
        model = needed("openvino", self.extra).Core().read_model(str(path))
        return {key: str(value) for key, value in model.get_rt_info([KEY]).value.items()}

    def quantise(self, path: Path, to: Path, images: Iterable[Sequence[Tensor]], about: About) -> None:
        """NNCF's quantisation after training, with its correction of biases, over all images, one at a time."""
        openvino, nncf = (needed(name, self.extra) for name in self.packages)
        model = openvino.Core().read_model(str(path))
        names = [port.get_any_name() for port in model.inputs]
        single = [
            dict(zip(names, (t[i : i + 1].numpy() for t in tensors), strict=True))
            for tensors in images
            for i in range(len(tensors[0]))
        ]
        with converted("nncf", "leave int8 out, or export onnx"):
            made = nncf.quantize(model, nncf.Dataset(single), subset_size=len(single))
            self._save(openvino, made, to, about)

    def files(self, path: Path) -> list[Path]:
        """The graph and its weights."""
        return [path, path.with_suffix(".bin")]

    def _save(self, openvino: Any, model: Any, path: Path, about: About) -> None:
        for key, value in about.items():
            model.set_rt_info(value, [KEY, key])
        openvino.save_model(model, str(path), compress_to_fp16=False)


RUNTIMES.register("openvino")(OpenVino())
