"""Ranks through the commands: searched, applied by every schedule, gone on with, compared, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch

import secateur
import zoo
from secateur.networks.factors import Factorised
from secateur.pruners import PlanError

BUDGET = {"flops": 0.7}


def session_in(folder: Path, *overrides: str) -> secateur.Session:
    return small.make(folder, "lowrank", *overrides, budget=BUDGET, agent={"episodes": 3, "warmup": 1, "rerank": 2})


@pytest.mark.parametrize("factors", ["channel", "spatial"])
def test_searched_applied_and_loaded(factors: str, tmp_path: Path) -> None:
    session = session_in(tmp_path, f"layers.factors={factors}")
    done = secateur.train(session, out=tmp_path / "run")
    assert done.plan.method == "lowrank"
    assert done.plan.cost["flops"] <= 0.7
    applied = secateur.apply(done.plan, session, finetune=1, out=tmp_path / "small")
    twos = {name: module for name, module in applied.model.named_modules() if isinstance(module, Factorised)}
    ranks = {layer.name: layer.kept for layer in done.plan.layers if layer.kept < layer.units}
    assert {name: module.rank for name, module in twos.items()} == ranks
    assert {module.kind for module in twos.values()} >= ({factors} if ranks.keys() - {"out"} else set())
    again = secateur.load(tmp_path / "small", model=small.Small())
    x = small.batches(1, 9)[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(again(x), applied.model(x))
    assert json.loads((tmp_path / "small" / "summary.json").read_text())["method"] == "lowrank"
    with pytest.raises(ValueError, match=r"was made from another architecture.*has no convolution or linear layer"):
        secateur.load(tmp_path / "small", model=torch.nn.Sequential(torch.nn.Linear(3, 3)))


@pytest.mark.parametrize("schedule", ["iterative", "rewind", "scratch_e"])
def test_every_schedule_ends_in_the_plans_ranks(schedule: str, tmp_path: Path) -> None:
    session = session_in(tmp_path)
    plan = small.plan_of(session, 0.3)
    done = secateur.apply(plan, session, finetune=2, schedule=schedule, out=tmp_path / "small")
    ranks = {name: m.rank for name, m in done.model.named_modules() if isinstance(m, Factorised)}
    assert ranks == {layer.name: layer.kept for layer in plan.layers if layer.kept < layer.units}
    again = secateur.load(tmp_path / "small", model=small.Small())
    x = small.batches(1, 9)[0][0]
    with torch.inference_mode():
        torch.testing.assert_close(again(x), done.model(x))


def test_what_ranks_cannot_do_is_refused_in_a_line(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    plan = small.plan_of(session, 0.3)
    with pytest.raises(ValueError, match="schedule = 'gradual' spreads zeros, and method lowrank changes weights"):
        secateur.apply(plan, session, finetune=2, schedule="gradual", out=tmp_path / "no")
    with pytest.raises(ValueError, match="allocator global_l1 is for channels, not for lowrank"):
        secateur.compare([plan], session, against=["global_l1"], out=tmp_path / "no")
    other = session_in(tmp_path, "layers.factors=spatial")
    with pytest.raises(PlanError, match="the plan is for another network: layer first has 6 ranks in the plan"):
        secateur.apply(plan, other, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_budget_of_latency_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the clock says what layers take: of `first` two are slower than one, at any rank."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))

    def price(module: torch.nn.Module, given: torch.Tensor, output: torch.Tensor) -> float:
        slow = isinstance(module, torch.nn.Conv2d) and given.shape[1] == 1 and output.shape[1] < 6
        return zoo.multiplications(module, given, output) + (1e-3 if slow else 0.0)

    monkeypatch.setattr("secateur.pruners.costs.profiler.time_segments", lambda m, x, clock: zoo.timer(price)(m, x))
    agent = {"episodes": 3, "warmup": 1, "rerank": 2}
    session = small.make(tmp_path, "lowrank", budget={"latency": 0.7}, agent=agent)
    choices = {layer.name: layer.choices for layer in session.structure.layers}
    assert choices["first"] == (6,)
    assert len(choices["inner2"]) > 1
    done = secateur.train(session, out=tmp_path / "run")
    assert secateur.train(resume=tmp_path / "run", session=session).plan == done.plan
    assert 0.5 < done.plan.cost["latency"] <= 0.7
    small_one = secateur.apply(done.plan, session, out=tmp_path / "small")
    assert small_one.summary["latency"]["predicted"] == done.plan.cost["latency"]
    assert small_one.summary["latency"]["measured"] > 0
    taken = [sum(zoo.timer(price)(model, small.batches(1, 9)[0][0])) for model in (small_one.model, session.model)]
    assert taken[0] / taken[1] == pytest.approx(done.plan.cost["latency"])
    rows = secateur.compare([done.plan], session, against=["uniform", "knapsack", "random"], out=tmp_path / "c").rows
    assert all(0.5 < row["latency"] <= 0.7 for row in rows)
    asked = secateur.plan(tmp_path / "run", session, latency=0.8, out=tmp_path / "p").plan
    assert 0.7 < asked.cost["latency"] <= 0.8
    looked = secateur.inspect(session, latency=True)
    assert looked.budgets["latency"].least < 0.7
    assert {row.name: row.choices for row in looked.layers} == choices
    cut = np.array([layer.units if layer.name != "first" else 2 for layer in session.structure.layers])
    assert session.structure.fraction("latency", cut) > 1.0  # by hand: it is said to be slower, as it is


def test_compared_with_every_rule_that_makes_sense(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    rules = ["uniform", "shallow", "deep", "threshold", "erk", "lamp", "global_magnitude", "knapsack", "random"]
    found = secateur.compare((), session, against=rules, candidates=2, out=tmp_path / "c")
    limit = session.budget.limit
    assert [plan.provenance.allocator for plan in found.plans] == rules
    assert all(session.budget.cost(plan.kept) <= limit for plan in found.plans)
    assert all(np.isfinite(row["test_accuracy"]) for row in found.rows)


def test_one_layer_at_a_time(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    done = secateur.sensitivity(
        session, layers=["inner2"], criteria=["data", "svd"], sparsities=[0.5, 0.8], out=tmp_path / "s"
    )
    errors = {(point["criterion"], point["asked"]): point["error"] for point in done.points}
    for criterion in ("data", "svd"):
        assert 0.0 < errors[criterion, 0.5] < errors[criterion, 0.8] <= 1.0


def test_spatial_then_channel_then_channels(tmp_path: Path) -> None:
    """3C (He, Zhang, Sun, ICCV 2017): every plan is for the network that the one before left."""
    session = session_in(tmp_path, "layers.factors=spatial")
    images = secateur.Images(small.batches(3, 1), small.batches(3, 2), small.batches(3, 3), train=small.batches(3, 4))
    model, x = small.Small(), small.batches(1, 9)[0][0]
    sizes = [sum(p.numel() for p in session.model.parameters())]
    for step, following in enumerate(["layers.factors=channel", "method=channels", None]):
        done = secateur.apply(small.plan_of(session, 0.5), session, finetune=0, out=tmp_path / str(step))
        sizes.append(sum(p.numel() for p in done.model.parameters()))
        model = secateur.load(tmp_path / str(step), model=model)
        with torch.inference_mode():
            torch.testing.assert_close(model(x), done.model(x))
        if following is not None:
            session = secateur.Session(session.config, model=done.model, images=images, overrides=[following])
    assert sorted(sizes, reverse=True) == sizes
    assert len(set(sizes)) == 4
