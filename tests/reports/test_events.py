"""TensorBoard reads what was written, at once and across files."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crash import files_of_at_most
from secateur.reports.events import Events


def read(folder, name):
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def test_a_step_is_there_before_the_next(tmp_path):
    events = Events(tmp_path / "tensorboard")
    for step in range(3):
        events.write(step, {"reward": step / 2, "loss": 3e38})
        assert read(tmp_path / "tensorboard", "reward") == [(n, n / 2) for n in range(step + 1)]
    events.close()
    assert [value for _, value in read(tmp_path / "tensorboard", "loss")] == pytest.approx([3e38] * 3)


def test_a_run_that_goes_on_takes_the_place_of_what_it_does_again(tmp_path, monkeypatch):
    for start, now in ((0, 1e9), (2, 2e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        events = Events(tmp_path, start)
        for step in range(start, 4):
            events.write(step, {"reward": now + step})
        events.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert [step for step, _ in read(tmp_path, "reward")] == [0, 1, 2, 3]
    assert [value > 1.5e9 for _, value in read(tmp_path, "reward")] == [False, False, True, True]


def test_a_full_disk_is_told_at_once(tmp_path):
    events = Events(tmp_path)
    with files_of_at_most(200), pytest.raises(OSError, match="too large"):
        events.write(0, {f"reward/{n}": 0.0 for n in range(20)})
    events.close()
