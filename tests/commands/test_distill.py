"""The distillation of a repair from a command: shown while it goes on, only in the end, and what is saved."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
import torch

import secateur
from secateur.commands.begun import Begun
from secateur.configs import load_config
from secateur.configs.load import ConfigError
from secateur.reports.progress import Advance, Reporter

STEPS = 3 * 1  # passes over 36 images, 4 of them held out


class Bars(Reporter):
    """Remembers how far its bars went."""

    def __init__(self) -> None:
        self.notes: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        notes = self.notes.setdefault(f"{title} {total}", [])
        yield lambda note="": notes.append(note)


@pytest.mark.filterwarnings("ignore:the distillation was not taken:RuntimeWarning")
@pytest.mark.parametrize(("schedule", "repairs"), [("one_shot", 1), ("iterative", 3)])  # 3: the plan's, and two rounds'
def test_a_finished_plan_is_distilled_and_shown(schedule: str, repairs: int, tmp_path: Path) -> None:
    session = small.make(tmp_path, "channels", "repair.final.distill=3")
    session.reporter = bars = Bars()
    done = secateur.apply(small.plan_of(session), session, schedule=schedule, finetune=2, out=tmp_path / schedule)
    assert len(bars.notes[f"distill {STEPS}"]) == STEPS * repairs
    assert all(note.startswith("loss ") for note in bars.notes[f"distill {STEPS}"])
    if schedule == "one_shot":
        again = secateur.load(tmp_path / schedule / "repaired", model=small.Small()).state_dict()
        made = session.compress(small.plan_of(session).kept).state_dict()
        assert all(torch.equal(tensor, made[name]) for name, tensor in again.items())
    assert done.model.training is False


def test_another_distillation_is_another_repair(tmp_path: Path) -> None:
    def begun(*overrides: str) -> Begun:
        session = small.make(tmp_path, "channels", *overrides)
        return Begun.now(session, small.plan_of(session), 1, "one_shot")

    without, one, two = begun(), begun("repair.final.distill=1"), begun("repair.final.distill=2")
    assert one.of["distillation"] != two.of["distillation"]
    assert "distillation" not in without.of  # as it was written before there was one
    assert '"distill": 0' not in without.of["config"]
    assert {**one.of, "distillation": "2"} == two.of


def test_candidates_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"repair\.search.*distill=3: to train every candidate .* set repair\.final"):
        load_config("digits", ["repair.search.distill=3"])
    assert load_config("digits", ["repair.final.distill=3"]).repair.search.distill == 0


def test_what_cannot_be_distilled_is_told_before_the_search(tmp_path: Path) -> None:
    session = small.make(tmp_path, "channels", "repair.final.distill=3", "agent.episodes=1")
    session.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"repair\.final\.distill = 3: all parameters of the Small are frozen"):
        secateur.train(session, out=tmp_path / "run")


@pytest.mark.slow
def test_the_demo_distils_and_ends_within_half_a_point_of_the_dense_network(tmp_path):
    found = secateur.plan(session="digits-weights", out=tmp_path / "plan")
    made = secateur.apply(tmp_path / "plan", out=tmp_path / "applied")
    assert found.plan.cost["params"] <= 0.03
    rows = [json.loads(line) for line in (made.folder / "training.jsonl").read_text().splitlines()]
    assert [row["taught"] for row in rows] == [True] * 20
    assert made.summary["pruned"]["test_accuracy"] > made.summary["dense"]["test_accuracy"] - 0.5
    assert made.summary["repaired"]["test_accuracy"] < made.summary["dense"]["test_accuracy"] - 5.0
