"""Train a network: an optimizer, its learning rate over the steps, an average of the weights, the best epoch."""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..configs.training import FitConfig
from ..storage.files import not_finite
from .checkpoint import (
    Checkpoint,
    Trained,
    generators_of,
    load_state,
    network_of,
    random_states,
    restore_random_states,
    state_of,
    under,
)
from .distillation import Teacher
from .inputs import count
from .objective import Objective, identity
from .step import Step, evaluating, rate
from .tasks import DEFAULT
from .team import Team

OnStep = Callable[[int, int, float], None]
OnEpoch = Callable[[int, int], None]
Row = dict[str, Any]
"""An epoch: its number from 1, mean loss, last learning rate, images seen, the score of `evaluate` or none, seconds."""

EARLY = "early"  # what `Fitted.early` is called in a checkpoint


class DivergedError(RuntimeError):
    """A loss or a weight that is not finite."""


class Batches(Protocol):
    """What can be walked once an epoch: (images (N, C, H, W) float, labels (N,) int64), normalised; or what else the
    objective takes apart."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Fitted:
    """What a training was.

    Attributes:
        epochs: a row an epoch.
        kept: the epoch whose weights the network has, from 1; 0 where there was none.
        early: the weights after the epoch that the config keeps, by name.
    """

    epochs: tuple[Row, ...] = ()
    kept: int = 0
    early: Mapping[str, Tensor] = field(default_factory=dict)


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
    teacher: Teacher | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    ready: Callable[[], bool] | None = None,
    keep_best: bool = False,
    on_rows: Callable[[Sequence[Row]], None] | None = None,
    team: Team | None = None,
) -> Fitted:
    """Train in place with the objective's loss, and leave the network in eval mode.

    With a checkpoint, what was trained is on disk after every epoch, and is gone on with: the network that an
    interrupted training gives in the end is that of an uninterrupted one, bit for bit on the CPU.

    Args:
        model: trained on the device it is on; batches are moved there. Parameters with `requires_grad` off stay as they
            are, and so do the modules `at_rest`.
        batches: walked anew every epoch, or called every epoch for what is walked. What is random there is drawn from
            torch's, numpy's or Python's own state, from a DataLoader's generator, or follows from `set_epoch(number)`,
            which is called before an epoch where there is one.
        config: epochs, optimizer and all else. Its batch size is for who makes the batches.
        seed: of everything random on the way (dropout, a loader that shuffles with torch's own state); torch's
            random state outside is left as it was.
        objective: whose loss is lowered; none is cross-entropy.
        on_step: called after every step with (step from 1, steps in all, the step's loss); it may change the weights.
        on_epoch: called before every epoch with (steps done, steps in all); it may change the weights.
        checkpoint: where the training is kept; the file stays when it is finished, for the caller to remove. A lower
            learning rate may go on from it.
        at_rest: names of modules that stay in eval mode besides those that `modules_at_rest` finds.
        teacher: whose outputs are learnt from, too.
        evaluate: called after every epoch with the network in eval mode, holding the average of the weights where
            there is one; it may change the weights (put zeros back). Higher is better.
        ready: whether the epoch that was evaluated may be chosen; none says yes.
        keep_best: whether the network ends as after the epoch that was evaluated best, the later of two; else the last.
        on_rows: called with the rows of all epochs so far, after each and when a training is gone on with.
        team: processes that share every batch out; see `distributed`.

    Raises:
        ValueError: no batches, or nothing to train; outputs and targets that the objective cannot make a loss of; a
            setting that does not go with objective or device; a checkpoint that was changed, or is of another training.
        TypeError: batches without a length (a generator is empty after one epoch).
        DivergedError: the loss or a weight is not finite; the checkpoint is of the last good epoch.
        OSError: the checkpoint cannot be written.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter to train: set requires_grad on some")
    step = Step(model, parameters, config, objective, teacher, team)
    device = parameters[0].device
    still = {*at_rest, *modules_at_rest(model)}
    finite = {name for name, tensor in model.state_dict().items() if not_finite({name: tensor}) is None}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            trained = Trained(model, step, device, generators_of(batches), _average(model, config))
            kept = _Kept.begin(checkpoint, trained, config, seed, objective)
            if kept.epoch:
                _skip(batches, kept.epoch)
                if on_rows is not None:
                    on_rows(kept.rows)
            model.train()
            for name, module in model.named_modules():
                if name in still:
                    module.training = False
            for number in range(kept.epoch, config.epochs):
                began, done, losses, images = time.perf_counter(), kept.step, 0.0, 0
                epoch = _epoch(batches, number)
                length = _length(epoch)
                total = config.epochs * length
                if on_epoch is not None:
                    on_epoch(done, total)
                for batch in epoch:
                    now = rate(done, total, config, length)
                    loss = step(batch, now, done)
                    done += 1
                    if not math.isfinite(loss):
                        raise DivergedError(f"loss is {loss} at step {done} of {total}: {kept.remedy(config)}")
                    losses += loss
                    images += count(objective.split(batch)[0])
                    if on_step is not None:
                        on_step(done, total, loss)
                    if trained.average is not None:
                        trained.average.update_parameters(model)
                bad = not_finite({name: tensor for name, tensor in model.state_dict().items() if name in finite})
                if bad is not None:
                    raise DivergedError(f"{bad} is not finite after epoch {number + 1}: {kept.remedy(config)}")
                row = {"epoch": number + 1, "loss": losses / length, "learning_rate": now, "images": images}
                choose = keep_best and (ready is None or ready())
                kept = kept.after(done, row, began, config, evaluate, choose=choose)
                if on_rows is not None:
                    on_rows(kept.rows)
            return kept.finish(keep_best=keep_best)
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
    step: int = 0
    rows: tuple[Row, ...] = ()
    best: int = 0  # epoch, 0 for none yet
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # of the best epoch
    early: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.rows)

    @classmethod
    def begin(
        cls, checkpoint: Checkpoint | None, trained: Trained, config: FitConfig, seed: int, objective: Objective
    ) -> _Kept:
        """At the start, or where the checkpoint is."""
        early = state_of(trained.model) if config.keep_epoch == 0 else {}
        if checkpoint is None:
            return cls(None, trained, {}, early=early)
        may_differ = {"learning_rate", "channels_last"}  # the second changes rounding alone
        settings = config.model_dump(mode="json", include=set(FitConfig.model_fields) - may_differ)
        of = {
            "network": network_of(trained.model),
            "objective": identity(objective),
            "training": json.dumps(settings),
            "seed": str(seed),
        }
        found = checkpoint.read(of)
        if found is None:
            return cls(checkpoint, trained, of, early=early)
        tensors, state = found
        trained.restore(tensors, state["scale"])
        restore_random_states(state["random"])
        weights, early = under("best", tensors), under(EARLY, tensors)
        return cls(checkpoint, trained, of, state["step"], tuple(state["rows"]), state["best"], weights, early)

    def after(
        self,
        step: int,
        row: Row,
        began: float,
        config: FitConfig,
        evaluate: Callable[[nn.Module], float] | None,
        *,
        choose: bool,
    ) -> _Kept:
        """Of one epoch more; the row says which, and is given score and seconds. It may be the best, if `choose`."""
        model, epoch = self.trained.model, row["epoch"]
        found, score = self, None
        if evaluate is not None:
            with _candidate(self.trained):
                score = evaluate(model)
                if choose and (not self.best or score >= self.rows[self.best - 1]["score"]):
                    found = replace(found, best=epoch, weights=state_of(model))
        if config.keep_epoch == epoch:
            found = replace(found, early=state_of(model))
        row = {**row, "score": score, "seconds": round(time.perf_counter() - began, 3)}
        found = replace(found, step=step, rows=(*self.rows, row))
        found._write(finished=epoch == config.epochs)
        return found

    def finish(self, *, keep_best: bool) -> Fitted:
        """Give the network the weights that are kept."""
        if keep_best and self.best:
            load_state(self.trained.model, self.weights)
        elif self.trained.average is not None and self.epoch:
            load_state(self.trained.model, _averaged(self.trained.average))
        return Fitted(self.rows, self.best if keep_best and self.best else self.epoch, self.early)

    def remedy(self, config: FitConfig) -> str:
        """Where a training diverges."""
        kept = "" if self.checkpoint is None or not self.epoch else f"; {self.checkpoint.path} holds epoch {self.epoch}"
        return f"lower the learning rate (it is {config.learning_rate}){kept}"

    def _write(self, *, finished: bool) -> None:
        if self.checkpoint is None:
            return
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "best": self.best,
            "random": random_states(),
            "scale": self.trained.scale,
        }
        tensors = self.trained.tensors(finished=finished)
        for part, weights in (("best", self.weights), (EARLY, self.early)):
            tensors |= {f"{part}.{name}": tensor for name, tensor in weights.items()}
        self.checkpoint.write(self.of, tensors, state)


@contextmanager
def _candidate(trained: Trained) -> Iterator[None]:
    """The network as it would be kept, in eval mode; afterwards it is trained on as it was."""
    with evaluating(trained.model):
        if trained.average is None:
            yield
            return
        live = state_of(trained.model)
        load_state(trained.model, _averaged(trained.average))
        try:
            yield
        finally:
            load_state(trained.model, live)


def _averaged(average: AveragedModel) -> dict[str, Tensor]:
    """Of integers (counters, indices) there is no average."""
    return {name: tensor for name, tensor in state_of(average.module).items() if tensor.is_floating_point()}


def _average(model: nn.Module, config: FitConfig) -> AveragedModel | None:
    """Of parameters and buffers: the statistics of norms belong to the weights they were taken with."""
    if not config.ema:
        return None
    try:
        average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"ema = {config.ema:g}: the network cannot be copied ({error}); set it to 0") from error


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


def _length(epoch: Batches) -> int:
    if not hasattr(epoch, "__len__"):
        raise TypeError(f"batches: a {type(epoch).__name__} has no length; give a list or a loader")
    if len(epoch) == 0:
        raise ValueError("batches: there are none; give at least one (images, labels)")
    return len(epoch)
