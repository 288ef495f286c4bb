"""Learning from the dense network: its outputs beside the targets, and its features at the layers that were cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Inputs, call, describe
from .objective import Objective
from .part import whole


@dataclass(frozen=True)
class Teacher:
    """The dense network, from which a smaller one learns: (1 − w) · loss(targets) + w · imitation(dense outputs).

    Attributes:
        model: in eval mode; never changed.
        weight: w, in [0, 1].
        temperature: of class scores.
        hints: weight of the features' relative distance, the mean over the layers; 0 for none.
        channels: module → which of the dense network's output channels the smaller one has; none for all.

    Sources: Hinton, Vinyals & Dean 2015; Romero et al., ICLR 2015 (hints).
    """

    model: nn.Module
    weight: float = 0.5
    temperature: float = 4.0
    hints: float = 0.0
    channels: Mapping[str, Tensor | None] = field(default_factory=dict)

    def loss(self, student: nn.Module, inputs: Inputs, targets: Any, objective: Objective) -> Tensor:
        """A step's loss, a scalar.

        Raises:
            ValueError: the two networks' outputs or features do not go together; in one line.
        """
        names = [name for name in self.channels if self.hints and _has(student, name)]
        with _outputs(student, names) as ours, _outputs(self.model, names) as theirs:
            outputs = whole(call(student, inputs))
            with torch.no_grad():
                wanted = whole(call(self.model, inputs))
        loss = (1.0 - self.weight) * objective.loss_in_training(outputs, targets)
        loss = loss + self.weight * objective.imitation(outputs, wanted, self.temperature)
        if not names:
            return loss
        return loss + self.hints * torch.stack([self._distance(name, ours, theirs) for name in names]).mean()

    def _distance(self, name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error over the variance of what is to be met."""
        wanted = _chosen(self.model, name, theirs[name], self.channels[name])
        if wanted.shape != ours[name].shape:
            raise ValueError(
                f"{name} returns {describe(ours[name])}, in the dense network {describe(wanted)}: no hints can be "
                "taken; set finetune.distill.hints=0"
            )
        return _relative(ours[name], wanted)


class Imitation(Objective):
    """The task of computing what the dense network computes, on inputs alone: there are no targets.

    Every layer's distance is relative to the spread of what is to be met, so that none outweighs another for the size
    of its numbers; the outputs are one more layer.
    """

    name = "imitation"
    measure = "R² %"

    def __init__(self, model: nn.Module, objective: Objective, channels: Mapping[str, Tensor | None]):
        """Of a dense network, in eval mode and never changed.

        Args:
            model: the dense network.
            objective: whose features the outputs are compared by.
            channels: as `Teacher` has it; modules that the smaller network lacks, or that return something else there,
                are left out.
        """
        self._model, self._objective, self._channels = model, objective, dict(channels)

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """All of it is input."""
        return batch, None

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) squared distance of the features from those of the dense network's outputs, over their spread."""
        ours, wanted = self._objective.features(outputs), self._objective.features(targets)
        return (ours - wanted).square().mean(1) / _spread(wanted)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over the images; targets are the dense network's outputs."""
        return self.losses(outputs, targets).mean()

    def score(self, outputs: Any, targets: Any) -> Tensor:
        """(N,) 1 where nothing is missing."""
        return 1.0 - self.losses(outputs, targets)

    def training_loss(self, model: nn.Module, inputs: Inputs, targets: Any) -> Tensor:
        """The mean over the outputs and the layers."""
        names = [name for name in self._channels if _has(model, name)]
        with _outputs(model, names) as ours, _outputs(self._model, names) as theirs:
            outputs = call(model, inputs)
            with torch.no_grad():
                wanted = call(self._model, inputs)
        pairs = [(ours[n], _chosen(self._model, n, theirs[n], self._channels[n])) for n in ours]
        layers = [_relative(our, their) for our, their in pairs if our.shape == their.shape]
        return torch.stack([self.loss(outputs, wanted), *layers]).mean()


@torch.no_grad()
def surroundings(
    student: nn.Module, model: nn.Module, channels: Mapping[str, Tensor | None], inputs: Inputs
) -> dict[str, Tensor | None]:
    """Where a smaller network's features are compared with the dense one's, as `Imitation` takes it.

    For a layer that was cut that is the smallest module round it that returns a tensor of the same shape in both: a
    residual block, whose sum counts and not one branch's part in it. Where there is none, or it holds most of the
    layers, as the body of a plain network does, it is the layer itself.

    Args:
        student: the smaller network.
        model: the dense one.
        channels: the layers that were cut, and which output channels they have left.
        inputs: some images, to see what modules return.
    """
    outer = {layer: [name for name in _round(layer) if _has(student, name)] for layer in channels}
    names = sorted({name for found in outer.values() for name in found})
    with _outputs(student, names) as ours, _outputs(model, names) as theirs:
        call(student, inputs)
        call(model, inputs)
    alike = {name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape}
    smallest = {layer: next((name for name in outer[layer] if name in alike), "") for layer in channels}
    held = Counter(smallest.values())
    local = {layer: name for layer, name in smallest.items() if name and 2 * held[name] <= len(channels)}
    return {layer: part for layer, part in channels.items() if layer not in local} | dict.fromkeys(local.values())


def _round(name: str) -> list[str]:
    """The modules that a module is in, the smallest first, without the network itself."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def distillable(objective: Objective) -> bool:
    """Whether a training's loss is made of outputs; detectors compute theirs inside the network."""
    return type(objective).training_loss is Objective.training_loss


@contextmanager
def _outputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What these modules return in the block's forward passes, by name, where it is a tensor; the last call counts."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    found[name] = whole(output)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def _chosen(dense: nn.Module, name: str, output: Tensor, channels: Tensor | None) -> Tensor:
    """Of what a module of the dense network returns the channels that the smaller one has."""
    if channels is None:
        return output
    dim = -1 if isinstance(dense.get_submodule(name), nn.Linear) else 1
    return output.index_select(dim, channels.to(output.device))


def _relative(ours: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the spread of what is to be met."""
    return nn.functional.mse_loss(ours, wanted) / _spread(wanted)


def _spread(wanted: Tensor) -> Tensor:
    return wanted.var().clamp_min(1e-12)


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())
