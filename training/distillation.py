"""Learning from the dense network: its outputs beside the targets, and its features at the layers that were cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Inputs, call, describe
from .objective import Objective


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
            outputs = call(student, inputs)
            with torch.no_grad():
                wanted = call(self.model, inputs)
        loss = (1.0 - self.weight) * objective.loss(outputs, targets)
        loss = loss + self.weight * objective.imitation(outputs, wanted, self.temperature)
        if not names:
            return loss
        return loss + self.hints * torch.stack([self._distance(name, ours, theirs) for name in names]).mean()

    def _distance(self, name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error over the variance of what is to be met."""
        dim = -1 if isinstance(self.model.get_submodule(name), nn.Linear) else 1
        wanted, chosen = theirs[name], self.channels[name]
        if chosen is not None:
            wanted = wanted.index_select(dim, chosen.to(wanted.device))
        if wanted.shape != ours[name].shape:
            raise ValueError(
                f"{name} returns {describe(ours[name])}, in the dense network {describe(wanted)}: no hints can be "
                "taken; set finetune.distill.hints=0"
            )
        return nn.functional.mse_loss(ours[name], wanted) / wanted.var().clamp_min(1e-12)


def distillable(objective: Objective) -> bool:
    """Whether a training's loss is made of outputs; detectors compute theirs inside the network."""
    return type(objective).training_loss is Objective.training_loss


@contextmanager
def _outputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What these modules return in the block's forward passes, by name; the last call counts."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                found[name] = output

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())
