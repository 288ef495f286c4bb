"""A network as runtimes take it: tensors in and tensors out, each with a name, and any number of images a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..training.inputs import Inputs, call, count, describe, joined, leaves, mapped, taken
from .constants import broadcast_constants

Channels = Sequence[float]


@dataclass(frozen=True)
class Program:
    """A network that `torch.export` has followed.

    Attributes:
        exported: what it does, without its classes' source.
        shapes: of its inputs, as `torch.export` takes them: which sizes are free.
        inputs: their names.
        outputs: their names.
        example: input tensors of two images, all 0.
        form: what the network returned for them.
        normalised: mean and standard deviation of each channel, where it takes pixels and normalises them itself.
    """

    exported: ExportedProgram
    shapes: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    form: Any
    normalised: tuple[Channels, Channels] | None

    @classmethod
    def of(cls, model: nn.Module, images: Inputs, normalised: tuple[Channels, Channels] | None = None) -> Program:
        """Follow a network.

        Args:
            model: in eval mode, on the CPU.
            images: some that it takes: (N, C, H, W), or several tensors with a row an image.
            normalised: mean and standard deviation of each channel, where the program is to take pixels in [0, 1] and
                normalise them itself.

        Raises:
            ValueError: inputs or outputs that are no tensors with a row for each image, or a forward that
                `torch.export` does not follow.
        """
        images = taken(images if count(images) > 1 else joined([images, images]), slice(2))
        if isinstance(images, list):
            raise ValueError("a list of images of any size cannot be exported: files take tensors with a row an image")
        given = leaves(images)
        with torch.no_grad():
            form = call(model, images)
        _check_form(form)
        if normalised is not None and (list(given) != [""] or len(normalised[0]) != images.shape[1]):
            raise ValueError(
                f"normalise: the network takes {describe(images)}, the config has mean and std of "
                f"{len(normalised[0])} channels: they must be as many as the images have"
            )
        # of no image's values, nor a view of them: what is followed here is saved with the program, memory and all
        example = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in given.values())
        free = tuple({0: Dim("batch", min=1)} for _ in example)
        try:
            exported = torch.export.export(
                _Flat(model, images, normalised).eval(), example, dynamic_shapes=(free,), strict=False
            )
        except Exception as error:  # of any kind: it runs the caller's code
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"torch.export does not follow this network for any number of images a batch "
                f"({type(error).__name__}: {reason}): let its forward branch on no values and fix no batch size"
            ) from error
        broadcast_constants(exported)
        alone = "pixels" if normalised is not None else "input"
        return cls(exported, (free,), _named(given, alone), _named(leaves(form), "output"), example, form, normalised)

    def inputs_of(self, images: Inputs) -> list[Tensor]:
        """What the network takes, normalised, as the tensors that the program takes."""
        given = list(leaves(images).values())
        return given if self.normalised is None else [denormalised(given[0], *self.normalised)]

    def outputs_of(self, tensors: Sequence[Tensor]) -> Any:
        """The program's output tensors in the form in which the network returns them.

        Raises:
            ValueError: they are more or fewer.
        """
        if len(tensors) != len(self.outputs):
            raise ValueError(f"the file returns {len(tensors)} tensors, the network {len(self.outputs)}")
        left = iter(tensors)
        return mapped(lambda _: next(left), self.form)


def denormalised(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """(N, C, …) normalised images as pixels in [0, 1]."""
    return images * _channels(std, images.dim()) + _channels(mean, images.dim())


class Together(nn.Module):
    """Networks side by side, each with an input tensor and an output tensor of its own: one program makes them all."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What each makes of its own."""
        return tuple(network(tensor) for network, tensor in zip(self.networks, tensors, strict=True))


class _Flat(nn.Module):
    """The network, called with its input tensors one after the other; it returns a tensor, or a tuple of them."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, form: Inputs, normalised: tuple[Channels, Channels] | None):
        super().__init__()
        self.model = model
        self.form = mapped(lambda _: torch.empty(0), form)
        self.normalised = normalised is not None
        if normalised is not None:
            for name, values in zip(("mean", "std"), normalised, strict=True):
                self.register_buffer(name, _channels(values, next(iter(leaves(form).values())).dim()))

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        left = iter(tensors)
        inputs = mapped(lambda _: next(left), self.form)
        outputs = leaves(call(self.model, (inputs - self.mean) / self.std if self.normalised else inputs))
        return outputs[""] if "" in outputs else tuple(outputs.values())


def _channels(values: Channels, dimensions: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, *[1] * (dimensions - 2))


def _check_form(form: Any) -> None:
    """Outputs must be tensors in lists, tuples and dicts, or they could not be put together again."""
    seen: list[Tensor] = []
    mapped(lambda tensor: seen.append(tensor) or tensor, form)  # type: ignore[func-returns-value]
    if not seen or len(seen) != len(leaves(form)) or any(not t.dim() or len(t) != 2 for t in seen):
        raise ValueError(
            f"the network returns {describe(form)} for two images: only tensors with a row for each image, alone or in "
            "tuples, lists and dicts, can be exported; wrap it in a module that returns them"
        )


def _named(tensors: dict[str, Tensor], alone: str) -> tuple[str, ...]:
    """Names that every runtime takes: letters, digits and _, each once."""
    found: list[str] = []
    for path in tensors:
        name = re.sub(r"\W", "_", path) if path else alone
        name = f"{alone}_{name}" if name[0].isdigit() else name
        while name in found:
            name += "_"
        found.append(name)
    return tuple(found)
