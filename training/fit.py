"""Train a network: SGD with Nesterov momentum, weight decay and a cosine schedule."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..configs.schema import FitConfig
from ..storage.files import not_finite
from .checkpoint import Checkpoint, Trained, generators_of, network_of, random_states, restore_random_states
from .inputs import mapped
from .objective import Objective, identity
from .tasks import DEFAULT

OnStep = Callable[[int, int, float], None]
OnEpoch = Callable[[int, int], None]


class DivergedError(RuntimeError):
    """A loss or a weight that is not finite."""


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
    on_epoch: OnEpoch | None = None,
    checkpoint: Checkpoint | None = None,
    at_rest: Collection[str] = (),
) -> None:
    """Train in place with the objective's loss, and leave the network in eval mode.

    With a checkpoint, what was trained is on disk after every epoch, and is gone on with: the network that an
    interrupted training gives in the end is that of an uninterrupted one, bit for bit on the CPU.

    Args:
        model: trained on the device it is on; batches are moved there. Parameters with `requires_grad` off stay as they
            are, and so do the modules `at_rest`.
        batches: walked anew every epoch, or called every epoch for what is walked. What is random there is drawn from
            torch's, numpy's or Python's own state, from a DataLoader's generator, or follows from `set_epoch(number)`,
            which is called before an epoch where there is one.
        config: epochs, learning rate (falls as a cosine to 0 over all steps), momentum, weight decay. Its batch size
            is for who makes the batches.
        seed: of everything random on the way (dropout, a loader that shuffles with torch's own state); torch's
            random state outside is left as it was.
        objective: whose loss is lowered; none is cross-entropy.
        on_step: called after every step with (step from 1, steps in all, the step's loss); it may change the weights.
        on_epoch: called before every epoch with (steps done, steps in all); it may change the weights.
        checkpoint: where the training is kept; the file stays when it is finished, for the caller to remove. A lower
            learning rate may go on from it.
        at_rest: names of modules that stay in eval mode besides those that `modules_at_rest` finds.

    Raises:
        ValueError: no batches, or nothing to train; outputs and targets that the objective cannot make a loss of; a
            checkpoint that was changed, or is of another training.
        TypeError: batches without a length (a generator is empty after one epoch).
        DivergedError: the loss or a weight is not finite; the checkpoint is of the last good epoch.
        OSError: the checkpoint cannot be written.
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
    still = {*at_rest, *modules_at_rest(model)}
    finite = {name for name, tensor in model.state_dict().items() if not_finite({name: tensor}) is None}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            trained = Trained(model, optimizer, device, generators_of(batches))
            kept = _Kept.begin(checkpoint, trained, config, seed, objective)
            if kept.epoch:
                _skip(batches, kept.epoch)
            step = kept.step
            model.train()
            for name, module in model.named_modules():
                if name in still:
                    module.training = False
            for number in range(kept.epoch, config.epochs):
                epoch = _epoch(batches, number)
                total = config.epochs * _length(epoch)
                if on_epoch is not None:
                    on_epoch(step, total)
                for batch in epoch:
                    for group in optimizer.param_groups:
                        group["lr"] = cosine(step, total, config.learning_rate)
                    step += 1
                    loss = _step(model, optimizer, batch, device, objective)
                    if not math.isfinite(loss):
                        raise DivergedError(f"loss is {loss} at step {step} of {total}: {kept.remedy(config)}")
                    if on_step is not None:
                        on_step(step, total, loss)
                bad = not_finite({name: tensor for name, tensor in model.state_dict().items() if name in finite})
                if bad is not None:
                    raise DivergedError(f"{bad} is not finite after epoch {number + 1}: {kept.remedy(config)}")
                kept = kept.after(number + 1, step, config)
    finally:
        model.eval()


def modules_at_rest(model: nn.Module) -> set[str]:
    """Names of the modules that training leaves in eval mode, as whoever made the network wants it.

    They are those that are in eval mode in a network that is not, and norms in eval mode of whose parameters none is
    trained: their running statistics are as frozen as their weights.
    """
    found = set()
    for name, module in model.named_modules():
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        frozen = isinstance(module, nn.modules.batchnorm._NormBase) and own and not any(own)
        if not module.training and (model.training or frozen):
            found.add(name)
    return found


@dataclass(frozen=True)
class _Kept:
    """How far a training is, on disk if there is a checkpoint."""

    checkpoint: Checkpoint | None
    trained: Trained
    of: Mapping[str, str]
    epoch: int = 0
    step: int = 0

    @classmethod
    def begin(
        cls, checkpoint: Checkpoint | None, trained: Trained, config: FitConfig, seed: int, objective: Objective
    ) -> _Kept:
        """At the start, or where the checkpoint is."""
        if checkpoint is None:
            return cls(None, trained, {})
        settings = config.model_dump(mode="json", exclude={"learning_rate"})
        of = {
            "network": network_of(trained.model),
            "objective": identity(objective),
            "training": json.dumps(settings),
            "seed": str(seed),
        }
        found = checkpoint.read(of)
        if found is None:
            return cls(checkpoint, trained, of)
        tensors, state = found
        trained.restore(tensors)
        restore_random_states(state["random"])
        return cls(checkpoint, trained, of, state["epoch"], state["step"])

    def after(self, epoch: int, step: int, config: FitConfig) -> _Kept:
        """Of one epoch more."""
        if self.checkpoint is not None:
            state = {"epoch": epoch, "step": step, "random": random_states()}
            self.checkpoint.write(self.of, self.trained.tensors(finished=epoch == config.epochs), state)
        return replace(self, epoch=epoch, step=step)

    def remedy(self, config: FitConfig) -> str:
        """Where a training diverges."""
        kept = "" if self.checkpoint is None or not self.epoch else f"; {self.checkpoint.path} holds epoch {self.epoch}"
        return f"lower the learning rate (it is {config.learning_rate}){kept}"


def _epoch(batches: Batches | Callable[[], Batches], number: int) -> Batches:
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(number)
    return batches() if callable(batches) else batches


def _skip(batches: Batches | Callable[[], Batches], epochs: int) -> None:
    """Bring a loader where it was after so many epochs, unless it says itself which epoch it walks."""
    if callable(batches):
        for _ in range(epochs):
            batches()
    elif not hasattr(batches, "set_epoch") and not isinstance(batches, Sequence | DataLoader):
        for _ in range(epochs):
            collections.deque(batches, maxlen=0)


def cosine(step: int, total: int, start: float) -> float:
    """The learning rate of a step counted from 0: `start` at first, 0 at `total`."""
    return start * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, device: torch.device, objective: Objective
) -> float:
    try:
        inputs, targets = mapped(lambda tensor: tensor.to(device), objective.split(batch))
    except ValueError as error:
        raise ValueError(f"a training batch {error}") from error
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
