"""Schedules: the paper's formula, and masks that are renewed when it says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.training.schedules import CubicSchedule, Gradual


@given(
    initial=st.floats(0.0, 1.0),
    rise=st.floats(0.0, 1.0),
    begin=st.integers(0, 20),
    updates=st.integers(1, 12),
    every=st.integers(1, 9),
)
def test_the_schedule_is_the_papers(initial: float, rise: float, begin: int, updates: int, every: int) -> None:
    final = initial + rise * (1.0 - initial)
    schedule = CubicSchedule(final, initial, begin, updates, every)
    for t in range(begin, begin + updates * every + 1, every):
        formula = final + (initial - final) * (1 - (t - begin) / (updates * every)) ** 3
        assert schedule.sparsity(t) == pytest.approx(formula, abs=1e-12)
        assert schedule.renews(t)
    last = begin + updates * every + 30
    values = [schedule.sparsity(t) for t in range(last)]
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(values))
    assert values[:begin] == pytest.approx([initial] * begin)
    assert set(values[begin + updates * every :]) == {final}
    changes = {t for t in range(1, last) if values[t] != values[t - 1]}
    assert changes <= {t for t in range(last) if schedule.renews(t)}
    assert sum(schedule.renews(t) for t in range(last)) == updates + 1


@given(steps=st.integers(1, 500), ramp=st.floats(0.01, 1.0), every=st.integers(1, 200))
def test_the_schedule_ends_within_its_part_of_the_steps(steps: int, ramp: float, every: int) -> None:
    schedule = CubicSchedule.over(steps, ramp, every)
    end = max(1, int(ramp * steps))
    assert end - schedule.every < schedule.end <= end
    assert schedule.sparsity(end) == 1.0
    assert schedule.sparsity(0) == 0.0


@pytest.mark.parametrize(
    "arguments",
    [{"final": 1.5}, {"final": 0.2, "initial": 0.3}, {"final": 0.5, "every": 0}, {"final": 1, "updates": 0}],
)
def test_a_schedule_that_falls_or_stands_still_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it must rise within 0 … 1|1 or more of the others"):
        CubicSchedule(**arguments)


class Log:
    """Notes how far it was tightened, and how often it was held since."""

    def __init__(self) -> None:
        self.parts: list[float] = []
        self.held = 0

    def __call__(self, model: nn.Module, part: float) -> Any:
        self.parts.append(part)
        return self.hold

    def hold(self, model: nn.Module) -> None:
        self.held += 1


def test_it_tightens_when_the_schedule_renews_and_holds_after_every_other_step() -> None:
    log = Log()
    gradual = Gradual(nn.Identity(), log, ramp=0.5, every=4)
    for step in range(1, 31):
        gradual(step, 30, 0.0)
    schedule = CubicSchedule.over(30, 0.5, 4)
    assert log.parts == [schedule.sparsity(step) for step in (4, 8, 12)]
    assert log.held == 30 - 3 - 3  # nothing to hold before the first
    assert log.parts[-1] == 1.0


@pytest.mark.parametrize(("steps", "every"), [(0, 100), (1, 100), (7, 3), (19, 7), (30, 7)])
def test_the_end_is_final_wherever_training_stops(steps: int, every: int) -> None:
    log = Log()
    gradual = Gradual(nn.Identity(), log, ramp=1.0, every=every)
    for step in range(1, steps + 1):
        gradual(step, 30, 0.0)
    gradual.finish()
    assert log.parts[-1] == 1.0
    assert all(less < more or more == 1.0 for less, more in itertools.pairwise(log.parts))


@pytest.mark.parametrize("arguments", [{"ramp": 0.0}, {"ramp": 1.5}, {"every": 0}])
def test_a_pace_that_cannot_be_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give a ramp in \(0, 1\], and 1 step or more"):
        Gradual(nn.Identity(), Log(), **arguments)
