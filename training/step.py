"""One step of a training: the loss of a batch, its gradient, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..configs.training import FitConfig
from .distillation import Teacher
from .gradient import Gradient
from .inputs import Inputs, call, mapped, taken
from .objective import Objective
from .tasks import CrossEntropy
from .team import Team

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Step:
    """Lowers the loss of one batch after another; what a config says of the optimizer happens here.

    Attributes:
        optimizer: over the parameters that are trained.
        scaler: of the loss, where gradients have half precision; else none.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        config: FitConfig,
        objective: Objective,
        teacher: Teacher | None = None,
        team: Team | None = None,
    ):
        """Of a network; with a team all its processes compute gradients.

        Raises:
            ValueError: the objective, or the device, has not what the config asks for.
        """
        self._device = parameters[0].device
        check_settings(config, objective, self._device)
        self._model, self._parameters, self._config, self._objective = model, parameters, config, objective
        gradient = Gradient(model, config, objective, teacher)
        self._gradient = gradient if team is None else team.shared(gradient)
        self._mix: Mix | None = None
        self.optimizer = _optimizer(parameters, config)
        self.scaler = torch.amp.GradScaler(self._device.type) if config.precision == "float16" else None

    def __call__(self, batch: Any, rate: float, number: int = 0) -> float:
        """The loss before the step, which is not taken where that is not finite; steps are numbered from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            inputs, targets = mapped(lambda tensor: tensor.to(self._device), self._objective.split(batch))
        except ValueError as error:
            raise ValueError(f"a training batch {error}") from error
        if self._config.mixup or self._config.cutmix:
            inputs, targets = self._mixed(inputs, targets)
        value = self._gradient(inputs, targets, None if self.scaler is None else self.scaler.scale, number)
        if math.isfinite(value):
            self._take()
        return value

    def _take(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self._config.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _mixed(self, images: Inputs, labels: Any) -> tuple[Inputs, Tensor]:
        """Images mixed two by two, and their labels as probabilities."""
        if not isinstance(images, Tensor) or images.dim() != 4 or labels.dim() != 1 or labels.is_floating_point():
            raise ValueError("mixup and cutmix take batches of images (N, C, H, W) and labels (N,): set both to 0")
        if int(labels.min()) < 0:
            raise ValueError(
                f"mixup and cutmix: a label is {int(labels.min())}, and none can be left out; set both to 0"
            )
        if self._mix is None:
            from torchvision.transforms import v2  # a second and a half to import, and only mixing needs it

            with evaluating(self._model), torch.no_grad():
                classes = self._objective.features(call(self._model, taken(images, slice(2)))).shape[1]
            made = [v2.MixUp(alpha=self._config.mixup, num_classes=classes)] if self._config.mixup else []
            made += [v2.CutMix(alpha=self._config.cutmix, num_classes=classes)] if self._config.cutmix else []
            self._mix = v2.RandomChoice(made)
        return self._mix(images, labels)


def check_settings(config: FitConfig, objective: Objective, device: torch.device) -> None:
    """Whether a network of this task, on this device, can be trained so.

    Raises:
        ValueError: it cannot; the message names the setting.
    """
    for name in ("mixup", "cutmix", "label_smoothing"):
        if getattr(config, name) and not isinstance(objective, CrossEntropy):
            raise ValueError(
                f"{name} = {getattr(config, name):g} is for cross-entropy, not for {objective.name}: set it to 0"
            )
    if config.precision == "float16" and device.type == "cpu":
        raise ValueError("precision = 'float16' needs a GPU (device: cuda): a CPU trains with float32, or bfloat16")


def rate(step: int, total: int, config: FitConfig, epoch: int) -> float:
    """The learning rate of a step counted from 0, of so many in all and in an epoch: it rises, then falls."""
    warm = min(round(config.warmup * epoch), total)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    if config.decay == "constant":
        return config.learning_rate
    return cosine(step - warm, max(1, total - warm), config.learning_rate)


def cosine(step: int, total: int, start: float) -> float:
    """The learning rate of a step counted from 0: `start` at first, 0 at `total`."""
    return start * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode for the length of the block; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@runtime_checkable
class TrainedForm(Protocol):
    """What keeps the form of a network (a `Hold`) that is trained in another one."""

    def trained(self, model: nn.Module) -> AbstractContextManager[object]:
        """In that form, in place, for the length of a block."""
        ...


def in_training(model: nn.Module, hold: object) -> AbstractContextManager[object]:
    """The network in the form in which it is trained, for the length of a block."""
    return hold.trained(model) if isinstance(hold, TrainedForm) else nullcontext()


def _optimizer(parameters: Sequence[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    rate, decay, momentum = config.learning_rate, config.weight_decay, config.momentum
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(momentum, 0.999))
    nesterov = config.nesterov and momentum > 0
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=momentum, nesterov=nesterov)
