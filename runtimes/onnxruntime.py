"""ONNX Runtime: `.onnx` files, and their static quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..training.inputs import Inputs, leaves
from .program import Program, Together
from .registry import RUNTIMES
from .runtime import KEY, About, Runtime, converted, floats, needed
from .timing import Run

LARGE = 2**30  # bytes; a protobuf holds no more than two of these, so that weights go into a file of their own


class OnnxRuntime(Runtime):
    """Files of `torch.onnx` (the exporter that follows `torch.export`)."""

    format = "onnx"
    suffix = ".onnx"
    extra = "onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    int8 = True
    loading = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, {{{inputs}}})"""

    def export(self, program: Program, path: Path, about: About) -> None:
        """Write the graph, its batch named `batch`, with what is said of it in `metadata_props`."""
        made = self._made(program)
        made.model.metadata_props.update(_keys(about))
        made.save(path)

    def write(
        self, networks: Sequence[nn.Module], images: Sequence[Inputs], paths: Sequence[Path], *, int8: bool = False
    ) -> None:
        """Several that have one input and one output are one graph first: the exporter reads its operations once."""
        if len(networks) < 2 or not self._makes_files_as(OnnxRuntime):
            super().write(networks, images, paths, int8=int8)
            return
        program = Program.of(Together(networks), tuple(images))
        graph = needed("onnx.utils", self.extra).Extractor(self._made(program).model_proto)
        onnx = needed("onnx", self.extra)
        for number, path in enumerate(paths):
            whole = floats(path) if int8 else path
            onnx.save(graph.extract_model([program.inputs[number]], [program.outputs[number]]), str(whole))
            if int8:
                self._quantise_alone(whole, path, list(leaves(images[number]).values()))

    def _made(self, program: Program) -> Any:
        self.check_installed()
        names: dict[str, Any] = {"input_names": list(program.inputs), "output_names": list(program.outputs)}
        with converted("torch.onnx", "export pt2 instead, or write what it names in other operations"):
            return torch.onnx.export(
                program.exported, (), dynamo=True, verbose=False, dynamic_shapes=program.shapes, **names
            )

    def open(self, path: Path, threads: int | None = None) -> Run:
        """With the CPU provider, and all of its graph optimisations."""
        runtime = needed("onnxruntime", self.extra)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or 0
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            arrays = (tensor.detach().numpy() for tensor in tensors)
            return [torch.from_numpy(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]

        return run

    def about(self, path: Path) -> dict[str, str]:
        """Of `metadata_props`."""
        model = needed("onnx", self.extra).load(str(path), load_external_data=False)
        start = f"{KEY}."
        found = {entry.key: entry.value for entry in model.metadata_props}
        return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}

    def quantise(self, path: Path, to: Path, images: Iterable[Sequence[Tensor]], about: About) -> None:
        """QDQ: weights of 7 bits by output channel, unsigned activations of 8 by tensor, by the extremes that are seen.

        Signed activations take twice as long on x86-64. With 8 bits of weights the sums of two products overflow there
        where the processor has no VNNI, and nobody is told: the network only answers worse.
        """
        self.check_installed()
        quantization = needed("onnxruntime.quantization", self.extra)
        prepare = needed("onnxruntime.quantization.shape_inference", self.extra).quant_pre_process
        onnx = needed("onnx", self.extra)
        names = [given.name for given in onnx.load(str(path), load_external_data=False).graph.input]
        feeds = (dict(zip(names, (t.numpy() for t in tensors), strict=True)) for tensors in images)
        large = sum(file.stat().st_size for file in self.files(path)) > LARGE
        prepared = to.with_name(f"{to.stem}-prepared.onnx")
        with converted("onnxruntime.quantization", "leave int8 out, or export openvino"):
            prepare(str(path), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
            quantization.quantize_static(
                str(prepared),
                str(to),
                _Reader(iter(feeds)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=large,
            )
        for file in self.files(prepared):
            file.unlink()
        model = onnx.load(str(to), load_external_data=False)
        onnx.helper.set_model_props(model, _keys(about))
        onnx.save(model, str(to))

    def files(self, path: Path) -> list[Path]:
        """The graph, and where it is large its weights."""
        beside = path.with_name(f"{path.name}.data")
        return [path, beside] if beside.exists() else [path]


class _Reader:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, feeds: Iterator[dict[str, Any]]):
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """A batch by input name; none behind the last."""
        return next(self._feeds, None)


def _keys(about: About) -> dict[str, str]:
    return {f"{KEY}.{key}": value for key, value in about.items()}


RUNTIMES.register("onnxruntime")(OnnxRuntime())
