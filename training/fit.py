"""Train a network: SGD with Nesterov momentum, weight decay and a cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..configs.schema import FitConfig
from .inputs import mapped
from .objective import Objective
from .tasks import DEFAULT

OnStep = Callable[[int, int, float], None]


class Batches(Protocol):
    """What can be walked once an epoch: (images (N, C, H, W) float, labels (N,) int64), normalised; or what else the
    objective takes apart."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


def fit(
    model: nn.Module,
    batches: Batches | Callable[[], Batches],
    config: FitConfig,
    *,
    seed: int,
    on_step: OnStep | None = None,
    objective: Objective = DEFAULT,
) -> None:
    """Train in place with the objective's loss, and leave the network in eval mode.

    Args:
        model: trained on the device it is on; batches are moved there.
        batches: walked anew every epoch, or called every epoch for what is walked.
        config: epochs, learning rate (falls as a cosine to 0 over all steps), momentum, weight decay. Its batch size
            is for who makes the batches.
        seed: of everything random on the way (dropout, a loader that shuffles with torch's own state); torch's
            random state outside is left as it was.
        objective: whose loss is lowered; none is cross-entropy.
        on_step: called after every step with (step from 1, steps in all, the step's loss); it may change the weights.

    Raises:
        ValueError: no batches, or nothing to train.
            Or outputs and targets that the objective cannot make a loss of.
        TypeError: batches without a length (a generator is empty after one epoch).
        RuntimeError: the loss is not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter to train: set requires_grad on some")
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )
    device = parameters[0].device
    step = 0
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for _ in range(config.epochs):
                epoch = batches() if callable(batches) else batches
                total = config.epochs * _length(epoch)
                for batch in epoch:
                    for group in optimizer.param_groups:
                        group["lr"] = cosine(step, total, config.learning_rate)
                    step += 1
                    loss = _step(model, optimizer, batch, device, objective)
                    if not math.isfinite(loss):
                        raise RuntimeError(
                            f"loss is {loss} at step {step} of {total}: "
                            f"lower the learning rate (it is {config.learning_rate})"
                        )
                    if on_step is not None:
                        on_step(step, total, loss)
    finally:
        model.eval()


def cosine(step: int, total: int, start: float) -> float:
    """The learning rate of a step counted from 0: `start` at first, 0 at `total`."""
    return start * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, device: torch.device, objective: Objective
) -> float:
    inputs, targets = mapped(lambda tensor: tensor.to(device), objective.split(batch))
    loss: Tensor = objective.training_loss(model, inputs, targets)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    value = loss.item()
    if math.isfinite(value):
        optimizer.step()
    return value


def _length(epoch: Batches) -> int:
    if not hasattr(epoch, "__len__"):
        raise TypeError(f"batches: a {type(epoch).__name__} has no length; give a list or a loader")
    if len(epoch) == 0:
        raise ValueError("batches: there are none; give at least one (images, labels)")
    return len(epoch)
