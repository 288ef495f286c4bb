"""In which order cutting and training follow each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

SCHEDULES = ("one_shot", "gradual")


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
        tighten: Callable[[nn.Module, float], Callable[[nn.Module], None]],
        *,
        ramp: float = 2 / 3,
        every: int = 100,
    ):
        if not 0.0 < ramp <= 1.0 or every < 1:
            raise ValueError(f"ramp = {ramp:g}, every = {every}: give a ramp in (0, 1], and 1 step or more")
        self._model, self._tighten, self._ramp, self._every = model, tighten, ramp, every
        self._hold: Callable[[nn.Module], None] | None = None

    def __call__(self, step: int, total: int, _loss: float) -> None:
        """Called after every step of the optimizer, with the step from 1 and the steps in all."""
        schedule = CubicSchedule.over(total, self._ramp, self._every)
        if schedule.renews(step):
            self._hold = self._tighten(self._model, schedule.sparsity(step))
        elif self._hold is not None:
            self._hold(self._model)

    def begin_epoch(self, step: int, total: int) -> None:
        """Called before every epoch, with the steps done: what holds the model is found anew, from the model alone.

        So a training that goes on from a checkpoint holds what the uninterrupted one does.
        """
        schedule = CubicSchedule.over(total, self._ramp, self._every)
        if step >= schedule.every:
            self._hold = self._tighten(self._model, schedule.sparsity(step))

    def finish(self) -> None:
        """Make the sparsity the final one, wherever the training ended."""
        self._tighten(self._model, 1.0)
