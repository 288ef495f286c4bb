"""Two methods in one search through the commands: searched, gone on with, applied, compared, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch

import secateur
from secateur.envs import CandidateEvaluator
from secateur.networks.factors import Factorised
from secateur.pruners import PlanError

BUDGETS = {"bits": {"size": 0.12}, "lowrank": {"flops": 0.5}}


def session_in(folder: Path, other: str = "bits", *overrides: str) -> secateur.Session:
    agent = {"episodes": 3, "warmup": 1, "rerank": 2}
    return small.make(folder, f"channels+{other}", *overrides, budget=BUDGETS[other], agent=agent)


def require_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    x = small.batches(1, 9)[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize("other", ["bits", pytest.param("lowrank", marks=pytest.mark.slow)])
def test_searched_applied_and_loaded(other: str, tmp_path: Path) -> None:
    session = session_in(tmp_path, other)
    done = secateur.train(session, out=tmp_path / "run")
    ((kind, most),) = BUDGETS[other].items()
    assert 0.6 * most < done.plan.cost[kind] <= most
    assert done.plan.method == f"channels+{other}"
    assert {layer.name.rpartition(".")[2] for layer in done.plan.layers} == {"channels", other}
    lines = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert all(len(line["kept"]) == len(done.plan.layers) for line in lines if "kept" in line)
    applied = secateur.apply(tmp_path / "run", session, finetune=1, out=tmp_path / "small")
    require_same(secateur.load(tmp_path / "small", model=small.Small()), applied.model)
    kept = {layer.name: layer.kept for layer in done.plan.layers}
    weight = applied.model.get_submodule("inner1").weight
    assert weight.shape[0] == kept["inner1.channels"]
    if other == "bits" and kept["inner1.weight.bits"] < 32:
        codes = weight / applied.model.get_buffer("inner1.weight_scale").reshape(-1, 1, 1, 1)
        torch.testing.assert_close(codes, codes.round())
    with pytest.raises(ValueError, match="was made from another architecture"):
        secateur.load(tmp_path / "small", model=torch.nn.Sequential(torch.nn.Linear(3, 3)))
    rows = secateur.compare(
        [done.plan], session, against=["uniform", "knapsack", "random", "lamp"], candidates=3, out=tmp_path / "all"
    ).rows
    assert all(row[kind] <= most for row in rows)


@pytest.mark.slow
def test_a_search_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = secateur.train(session_in(tmp_path), out=tmp_path / "whole")
    measure, asked = CandidateEvaluator.measure, []

    def stopping(self, candidate, kept):
        asked.append(kept)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measure(self, candidate, kept)

    monkeypatch.setattr(CandidateEvaluator, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        secateur.train(session_in(tmp_path), out=tmp_path / "stopped")
    monkeypatch.setattr(CandidateEvaluator, "measure", measure)
    again = secateur.train(session_in(tmp_path), resume=tmp_path / "stopped")
    assert np.array_equal(again.plan.kept, whole.plan.kept)


@pytest.mark.slow
@pytest.mark.parametrize("other", BUDGETS)
@pytest.mark.parametrize("schedule", ["iterative", "rewind", "scratch_e"])
def test_every_schedule_ends_in_the_plans_form(other: str, schedule: str, tmp_path: Path) -> None:
    session = session_in(tmp_path, other)
    plan = small.plan_of(session, 0.25)
    done = secateur.apply(plan, session, finetune=2, schedule=schedule, out=tmp_path / "small")
    assert done.model.get_submodule("inner1").weight.shape[0] == 2
    require_same(secateur.load(done.folder, small.Small()), done.model)
    if other == "lowrank":
        assert any(isinstance(module, Factorised) for module in done.model.modules())


def test_what_two_methods_cannot_do_is_refused_in_a_line(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    plan = small.plan_of(session, 0.25)
    with pytest.raises(ValueError, match=r"schedule = 'gradual' spreads zeros, and method channels\+bits changes"):
        secateur.apply(plan, session, finetune=2, schedule="gradual", out=tmp_path / "out")
    with pytest.raises(PlanError, match=r"cannot be met: cutting every layer"):
        secateur.train(session_in(tmp_path, "bits", "budget.size=0.001"), out=tmp_path / "out")
    with pytest.raises(PlanError, match=r"no latency table for method: channels\+bits; budget flops or params"):
        secateur.train(session_in(tmp_path, "bits", "budget.latency=0.9"), out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"the plan .* prunes channels\+bits, not channels: set method"):
        plan.check(small.make(tmp_path, "channels").structure)
    with pytest.raises(PlanError, match="1 bits: a symmetric grid has 2 or more"):
        session.compress(np.array([1] * len(session.structure.layers)))
    assert not (tmp_path / "out").exists()


def test_inspect_shows_the_layers_of_both(tmp_path: Path) -> None:
    found = secateur.inspect(session_in(tmp_path))
    assert found.unit == "channels or bits"
    assert [row.name for row in found.layers[:3]] == ["first.channels", "first.weight.bits", "inner1.channels"]
    assert found.budgets["size"].least < 0.05
