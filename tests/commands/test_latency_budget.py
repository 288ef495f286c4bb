"""A budget of latency from end to end; a stand-in for the clock says what segments take, whole networks are timed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur
import zoo
from secateur.pruners.plan import RatioPlan


@pytest.fixture(scope="module", autouse=True)
def clock(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(
            "secateur.pruners.costs.profiler.time_segments",
            lambda m, x, clock: zoo.timer(zoo.multiplications)(m, x),
        )
        yield


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    overrides = [*quick, "agent.episodes=3", "budget.latency=0.4", "latency.repeats=1", "latency.batch=4"]
    return secateur.train(
        secateur.Session("digits", overrides=overrides), out=tmp_path_factory.mktemp("latency") / "run"
    )


def test_the_plan_keeps_the_budget_and_says_so(trained):
    tree = json.loads((trained.folder / "plan.json").read_text())
    assert tree["budget"] == {"kind": "latency", "fraction": 0.4}
    assert 0.3 < tree["cost"]["latency"] <= 0.4
    assert tree["cost"]["latency"] == pytest.approx(tree["cost"]["flops"])  # here only multiplications take time
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary["best"]["latency"] == tree["cost"]["latency"]
    assert summary["dense"]["latency_predicted_ms"] == pytest.approx(summary["dense"]["flops_count"] / 1e6)
    assert summary["dense"]["latency_measured_ms"] > 0


def test_applied_here_the_table_stands_beside_the_whole_network(trained, tmp_path):
    done = secateur.apply(trained.folder, out=tmp_path / "small")
    found = done.summary["latency"]
    assert found["predicted"] == trained.plan.cost["latency"]
    assert found["measured"] == done.summary["pruned"]["latency_ms"] / done.summary["dense"]["latency_ms"]
    assert found["dense_measured_ms"] == done.summary["dense"]["latency_ms"]
    assert found["dense_predicted_ms"] == pytest.approx(trained.summary["dense"]["flops_count"] / 1e6)
    assert done.summary["latency_batch"] == 4
    assert done.summary["latency_runtime"] == "PyTorch"


def test_applied_where_flops_count_no_table_is_made(trained, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("no table is needed")

    monkeypatch.setattr("secateur.commands.outline.take_table", never)
    done = secateur.apply(trained.folder, secateur.Session(overrides=["budget.flops=1"]), out=tmp_path / "small")
    assert "latency" not in done.summary
    assert RatioPlan.load(done.folder) == trained.plan


def test_compared_at_the_same_latency(trained, tmp_path):
    done = secateur.compare(
        [trained.plan], trained.folder / "config.yaml", against=["uniform", "knapsack"], out=tmp_path / "c"
    )
    assert [row["allocator"] for row in done.rows] == ["ddpg", "uniform", "knapsack"]
    assert all(0.3 < row["latency"] <= 0.4 for row in done.rows)
    assert {plan.budget.kind for plan in done.plans} == {"latency"}
    assert np.all(done.plans[2].kept >= 1)


def test_resumed_it_is_the_same_search(trained, quick, tmp_path):
    resumed = secateur.train(resume=trained.folder)
    assert resumed.summary["replayed"] == 3
    assert resumed.plan == trained.plan
