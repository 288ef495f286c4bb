"""In which order cutting and training follow each other: short functions, known by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..configs.registry import Registry
from ..configs.training import FinetuneConfig, GradualConfig
from .fit import Batches, OnEpoch, OnStep
from .objective import Objective

Hold = Callable[[nn.Module], None]
"""Puts a network back into its form, in place, after a step of an optimizer."""


@dataclass(frozen=True)
class Cut:
    """A network of which a part is kept.

    Attributes:
        model: the network; whoever has the cut may train it.
        kept: (layers,) units kept.
        recipes: by which it is made of the dense architecture, one after the other (`Method.rebuild`).
        hold: keeps its form while it is trained, if anything must.
        channels: module → which of the dense network's output channels it has, none for all; every module that was cut.
    """

    model: nn.Module
    kept: Any
    recipes: tuple[Mapping[str, Any], ...] = ()
    hold: Hold | None = None
    channels: Mapping[str, Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainContext:
    """What a training loop of one's own is called with: `train_fn(model, context)` trains the network in place.

    Attributes:
        epochs: to train for.
        train: batches, walked anew every epoch.
        search: batches that an epoch may be chosen on; never the test images.
        dense: the dense network, in eval mode, to learn from; it must stay as it is.
        objective: the task: `objective.training_loss(model, inputs, targets)`.
        hold: to be called with the network after every step of an optimizer: puts zeros back, if there are any.
        settings: the config's section `finetune`.
        round: which training this is, from 1.
        seed: for what is random.
        folder: to write to.
    """

    epochs: int
    train: Batches
    search: Any
    dense: nn.Module
    objective: Objective
    hold: Hold
    settings: FinetuneConfig
    round: int
    seed: int
    folder: Path


TrainFn = Callable[[nn.Module, TrainContext], object]


class Retraining(Protocol):
    """What a schedule is given: a plan that cuts, and something that trains.

    Attributes:
        epochs: to train for, all rounds together.
        settings: the config's section `finetune`.
        gradual: the config's section of that name.
        flops: the part of the dense network's that the plan keeps.
    """

    epochs: int
    settings: FinetuneConfig
    gradual: GradualConfig
    flops: float

    def dense(self) -> Cut:
        """A copy of the dense network, nothing cut."""
        ...

    def cut(self, part: float = 1.0, after: Cut | None = None, *, repaired: bool = True) -> Cut:
        """A network cut a part of the way to the plan, of the dense one or of one that was cut before."""
        ...

    def tighten(self, model: nn.Module, part: float) -> Hold:
        """Cut a part of the way with zeros, in place; the network keeps its shape. What holds it there."""
        ...

    def shrunk(self, model: nn.Module) -> Cut:
        """The plan's network of one that was tightened all the way."""
        ...

    def with_weights(self, cut: Cut, dense: nn.Module) -> Cut:
        """The same part of another network of the dense architecture; that one is used up."""
        ...

    def initial(self) -> nn.Module:
        """The dense architecture with the weights that `rewind` goes back to."""
        ...

    def fresh(self) -> nn.Module:
        """The dense architecture with random weights."""
        ...

    def train(
        self,
        cut: Cut,
        epochs: int,
        *,
        number: int = 1,
        taught: bool = True,
        afresh: bool = False,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Train in place, the training of this `number`; learning from the dense network unless `taught` is off.

        With `afresh` as the dense network was trained, where that was here: for weights that are not trained yet.
        With `ready`, epochs are chosen among those after which it says yes.
        """
        ...

    def recorded(self, cut: Cut, number: int) -> Cut | None:
        """The cut with the weights that this round ended with, where it is finished already."""
        ...

    def record(self, cut: Cut, number: int) -> None:
        """A round is finished."""
        ...

    def score(self, model: nn.Module) -> float:
        """The objective's measure on the search images."""
        ...

    def say(self, text: str) -> None:
        """A line for a person."""
        ...


Schedule = Callable[[Retraining], Cut]

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("one_shot")
def one_shot(task: Retraining) -> Cut:
    """Cut, repair, train."""
    cut = task.cut()
    task.train(cut, task.epochs)
    return cut


@SCHEDULES.register("iterative")
def iterative(task: Retraining) -> Cut:
    """Cut a part of the way, repair, train, until the plan is reached (Han et al., NeurIPS 2015)."""
    return _in_rounds(task, task.settings.rounds or 3)


@SCHEDULES.register("gradual")
def gradual(task: Retraining) -> Cut:
    """Zeros that spread while the dense network is trained (Zhu & Gupta 2018), cut out in the end."""
    dense, pace = task.dense(), task.gradual
    tightening = Gradual(dense.model, task.tighten, ramp=pace.ramp, every=pace.every)
    held = Cut(dense.model, dense.kept, hold=tightening.hold)
    callbacks: dict[str, Any] = {"on_step": tightening, "on_epoch": tightening.begin_epoch}
    task.train(held, task.epochs, ready=lambda: tightening.final, **callbacks)
    tightening.finish()
    return task.shrunk(dense.model)


@SCHEDULES.register("rewind")
def rewind(task: Retraining) -> Cut:
    """What stays goes back to earlier weights, and is trained from there: lottery tickets (Frankle & Carbin 2019)."""
    return _in_rounds(task, task.settings.rounds or 1, lambda cut: task.with_weights(cut, task.initial()))


@SCHEDULES.register("scratch_e")
def scratch_e(task: Retraining) -> Cut:
    """The plan's shape from random weights, for as many epochs (Liu et al., ICLR 2019)."""
    return _from_scratch(task, task.epochs)


@SCHEDULES.register("scratch_b")
def scratch_b(task: Retraining) -> Cut:
    """The plan's shape from random weights, for as many FLOPs as those epochs of the dense network take."""
    return _from_scratch(task, round(task.epochs / task.flops))


def _from_scratch(task: Retraining, epochs: int) -> Cut:
    cut = task.with_weights(task.cut(repaired=False), task.fresh())
    task.train(cut, epochs, taught=False, afresh=True)
    return cut


def _in_rounds(task: Retraining, rounds: int, back: Callable[[Cut], Cut] | None = None) -> Cut:
    """Cut and train in turn, `back` from weights that are not trained yet; below the floor the round before counts."""
    if not rounds <= task.epochs:
        raise ValueError(f"{rounds} rounds share {task.epochs} epochs: give finetune epochs, one a round or more")
    last, floor = task.dense(), task.settings.floor
    for number in range(1, rounds + 1):
        cut = task.cut(number / rounds, None if number == 1 else last, repaired=back is None)
        found = task.recorded(cut, number)
        if found is None:
            found = cut if back is None else back(cut)
            task.train(found, share(task.epochs, rounds, number), number=number, afresh=back is not None)
            task.record(found, number)
        score = task.score(found.model)
        if floor is not None and not score >= floor:
            kept = f"what round {number - 1} left" if number > 1 else "the dense network"
            task.say(f"round {number} of {rounds}: {score:.2f} on the search images, below {floor:g}: {kept} is kept")
            return last
        last = found
    return last


def share(epochs: int, rounds: int, number: int) -> int:
    """Epochs of a round, from 1: as many as the others', the last rounds one more."""
    return epochs // rounds + (number > rounds - epochs % rounds)


@dataclass(frozen=True)
class CubicSchedule:
    """s_t = s_f + (s_i − s_f)(1 − (t − t₀)/(nΔt))³ for t in t₀, t₀ + Δt, … (Zhu & Gupta 2018, eq. 1), held between.

    Attributes:
        final: s_f.
        initial: s_i, also before the start.
        begin: t₀, a step.
        updates: n, how often the masks are renewed after t₀.
        every: Δt, steps between two renewals.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    updates: int = 100
    every: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final <= 1.0:
            raise ValueError(f"sparsity from {self.initial:g} to {self.final:g}: it must rise within 0 … 1")
        if self.begin < 0 or self.updates < 1 or self.every < 1:
            raise ValueError(
                f"begin = {self.begin}, updates = {self.updates}, every = {self.every}: "
                "give a begin of 0 or more, and 1 or more of the others"
            )

    @classmethod
    def over(cls, steps: int, ramp: float, every: int, final: float = 1.0) -> CubicSchedule:
        """From 0 at the start to `final` at (or up to Δt before) the part `ramp` of these steps."""
        end = max(1, int(ramp * steps))
        every = min(every, end)
        return cls(final, updates=end // every, every=every)

    @property
    def end(self) -> int:
        """The step from which the sparsity is final."""
        return self.begin + self.updates * self.every

    def sparsity(self, step: int) -> float:
        """After this step."""
        passed = min(max(step - self.begin, 0) // self.every, self.updates) / self.updates
        return self.final + (self.initial - self.final) * (1.0 - passed) ** 3

    def renews(self, step: int) -> bool:
        """Whether the masks are renewed after this step."""
        return self.begin <= step <= self.end and (step - self.begin) % self.every == 0


class Gradual:
    """Tightens a compression while training: `fit(model, …, on_step=gradual, on_epoch=gradual.begin_epoch)`, then
    `gradual.finish()`.

    The part of the way to the final sparsity rises from 0 to 1 by the cubic schedule; after every step of the optimizer
    what was removed is removed again, since momentum would bring it back.

    Args:
        model: trained, and compressed in place.
        tighten: given the model and the part of the way, in [0, 1], compresses it in place, and returns what holds it
            there after each step of the optimizer.
        ramp: the part of the training in which the sparsity rises, in (0, 1].
        every: steps between two renewals.
    """

    def __init__(
        self,
        model: nn.Module,
        tighten: Callable[[nn.Module, float], Hold],
        *,
        ramp: float = 2 / 3,
        every: int = 100,
    ):
        if not 0.0 < ramp <= 1.0 or every < 1:
            raise ValueError(f"ramp = {ramp:g}, every = {every}: give a ramp in (0, 1], and 1 step or more")
        self._model, self._tighten, self._ramp, self._every = model, tighten, ramp, every
        self._hold: Hold | None = None
        self.final = False  # whether the sparsity is the final one

    def __call__(self, step: int, total: int, _loss: float) -> None:
        """Called after every step of the optimizer, with the step from 1 and the steps in all."""
        schedule = CubicSchedule.over(total, self._ramp, self._every)
        if schedule.renews(step):
            self._hold = self._tighten(self._model, schedule.sparsity(step))
        else:
            self.hold(self._model)
        self.final = step >= schedule.end

    def begin_epoch(self, step: int, total: int) -> None:
        """Called before every epoch, with the steps done: what holds the model is found anew, from the model alone.

        So a training that goes on from a checkpoint holds what the uninterrupted one does.
        """
        schedule = CubicSchedule.over(total, self._ramp, self._every)
        if step >= schedule.every:
            self._hold = self._tighten(self._model, schedule.sparsity(step))

    def hold(self, model: nn.Module) -> None:
        """Remove again what is removed."""
        if self._hold is not None:
            self._hold(model)

    def finish(self) -> None:
        """Make the sparsity the final one, wherever the training ended."""
        self._tighten(self._model, 1.0)
