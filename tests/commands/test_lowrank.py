"""Ranks through the commands: searched, applied by every schedule, gone on with, compared, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch

import secateur
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
    timed = small.make(tmp_path, "lowrank", budget={"latency": 0.5})
    with pytest.raises(PlanError, match="no latency table for method: lowrank; budget flops or params"):
        secateur.train(timed, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


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
