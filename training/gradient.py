"""The loss of a batch and its gradient: what a step computes in one process, and what several share out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..configs.training import FitConfig
from .distillation import Teacher, distillable
from .inputs import Inputs, mapped
from .objective import Objective
from .part import Part
from .synchronised import Synchronised

Scale = Callable[[Tensor], Tensor]


class Gradient:
    """Of the objective's loss, or of the teacher's, by a network's parameters that are trained.

    Attributes:
        model: the network.
        parameters: those that are trained.
        objective: whose loss is lowered, with what the config says of it.
    """

    def __init__(self, model: nn.Module, config: FitConfig, objective: Objective, teacher: Teacher | None = None):
        """Of a network.

        Raises:
            ValueError: the objective has no label smoothing, and the config asks for it.
        """
        self.model, self._config, self._teacher = model, config, teacher
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.objective = objective.smoothed(config.label_smoothing) if config.label_smoothing else objective

    def __call__(self, inputs: Inputs, targets: Any, scale: Scale | None = None, _number: int = 0) -> float:
        """The loss; its gradient, or that of the loss scaled, is in the parameters afterwards."""
        return self._backward(inputs, lambda inputs: self._loss(inputs, targets), scale)

    def of_part(self, part: Part, inputs: Inputs, targets: Any, scale: Scale | None = None) -> float:
        """What this process adds to the loss and its gradient, of inputs and targets for the whole batch.

        A loss of outputs is that of the whole batch's, which are put together from all processes. One that is computed
        inside the network (`distillable`) is this part's mean, weighted with its images.
        """
        mine = part.of(inputs)
        with Synchronised(part):
            if self._teacher is None and not distillable(self.objective):
                weight = part.count / part.images
                return self._backward(mine, lambda inputs: weight * self._loss(inputs, part.of(targets)), scale)
            with part.gathering():
                loss = self._backward(mine, lambda inputs: self._loss(inputs, targets), scale)
        return loss if part.rank == 0 else 0.0  # all have the same

    def _backward(self, inputs: Inputs, loss_of: Callable[[Inputs], Tensor], scale: Scale | None) -> float:
        if self._config.channels_last:
            inputs = mapped(_channels_last, inputs)
        device = self.parameters[0].device.type
        with torch.autocast(device, _dtype(self._config), enabled=self._config.precision != "float32"):
            loss = loss_of(inputs)
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(loss if scale is None else scale(loss))
        return loss.item()

    def _loss(self, inputs: Inputs, targets: Any) -> Tensor:
        if self._teacher is None:
            return self.objective.training_loss(self.model, inputs, targets)
        return self._teacher.loss(self.model, inputs, targets, self.objective)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _dtype(config: FitConfig) -> torch.dtype:
    return torch.float16 if config.precision == "float16" else torch.bfloat16
