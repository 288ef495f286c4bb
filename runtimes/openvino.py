"""OpenVINO: its intermediate representation (`.xml` and `.bin`), and NNCF's quantisation of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..training.inputs import Inputs
from .program import Program, Together
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
        self._save(openvino, self._made(openvino, program), path, about)

    def write(
        self, networks: Sequence[nn.Module], images: Sequence[Inputs], paths: Sequence[Path], *, int8: bool = False
    ) -> None:
        """Several that have one input and one output are one graph first, quantised as one, too."""
        if len(networks) < 2 or not self._makes_files_as(OpenVino):
            super().write(networks, images, paths, int8=int8)
            return
        openvino = needed("openvino", self.extra)
        program = Program.of(Together(networks), tuple(images))
        model = self._made(openvino, program)
        if int8:
            model = self._quantised(model, [program.inputs_of(tuple(images))])
        for result, name, path in zip(model.get_results(), program.inputs, paths, strict=True):
            given = [node for node in model.get_parameters() if name in node.output(0).get_names()]
            self._save(openvino, openvino.Model([result], given, path.stem), path, {})

    def _made(self, openvino: Any, program: Program) -> Any:
        with converted("openvino.convert_model", "export onnx or pt2 instead"):
            model = openvino.convert_model(program.exported)
            shapes = {i: openvino.PartialShape([-1, *t.shape[1:]]) for i, t in enumerate(program.example)}
            model.reshape(shapes)  # the converter leaves open more sizes than the batch
            for ports, names in ((model.inputs, program.inputs), (model.outputs, program.outputs)):
                for port, name in zip(ports, names, strict=True):
                    port.get_tensor().set_names({name})
            return model

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
        openvino = needed("openvino", self.extra)
        self._save(openvino, self._quantised(openvino.Core().read_model(str(path)), images), to, about)

    def _quantised(self, model: Any, images: Iterable[Sequence[Tensor]]) -> Any:
        nncf = needed("nncf", self.extra)
        names = [port.get_any_name() for port in model.inputs]
        single = [
            dict(zip(names, (t[i : i + 1].numpy() for t in tensors), strict=True))
            for tensors in images
            for i in range(len(tensors[0]))
        ]
        with converted("nncf", "leave int8 out, or export onnx"):
            return nncf.quantize(model, nncf.Dataset(single), subset_size=len(single))

    def files(self, path: Path) -> list[Path]:
        """The graph and its weights."""
        return [path, path.with_suffix(".bin")]

    def _save(self, openvino: Any, model: Any, path: Path, about: About) -> None:
        for key, value in about.items():
            model.set_rt_info(value, [KEY, key])
        openvino.save_model(model, str(path), compress_to_fp16=False)


RUNTIMES.register("openvino")(OpenVino())
