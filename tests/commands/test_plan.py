"""`secateur plan`: a policy's word for any budget, without a candidate."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import secateur
from secateur.commands.cli import app
from secateur.commands.plan import DEFAULT_ALLOCATOR
from secateur.envs import CandidateEvaluator


def test_any_budget_without_a_candidate(run, tmp_path, monkeypatch):
    monkeypatch.setattr(CandidateEvaluator, "evaluate", lambda *_: pytest.fail("a candidate was evaluated"))
    kept = {}
    for fraction in (0.2, 0.4, 0.8):
        done = secateur.plan(run.folder, flops=fraction, out=tmp_path / f"{fraction}")
        assert done.trained_on_it
        assert done.plan.budget.fraction == fraction
        assert fraction - 0.1 < done.plan.cost["flops"] <= fraction
        assert done.plan.provenance.candidates == 0
        kept[fraction] = done.plan.kept.sum()
    assert kept[0.2] < kept[0.4] < kept[0.8]


def test_its_folder_can_be_applied(run, tmp_path):
    done = secateur.plan(run.folder, params=0.5, out=tmp_path / "plan")
    assert done.plan.budget.kind == "params"
    small = secateur.apply(done.folder, finetune=0, out=tmp_path / "small")
    assert small.summary["pruned"]["params"] == pytest.approx(done.plan.cost["params"])
    assert done.plan.cost["params"] <= 0.5


def test_on_the_command_line(run, tmp_path):
    result = CliRunner().invoke(app, ["plan", str(run.folder), "--flops", "0.3", "--out", str(tmp_path / "p")])
    assert result.exit_code == 0, result.output
    assert secateur.RatioPlan.load(tmp_path / "p").cost["flops"] <= 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flops": "40m"}, "budget.flops: '40m' is no budget"),
        ({"flops": 0.001}, r"budget\.flops = 0\.001 cannot be met"),
    ],
)
def test_what_cannot_be_is_said(run, given, message):
    with pytest.raises(ValueError, match=message):
        secateur.plan(run.folder, **given)


def test_no_policy_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a run folder"):
        secateur.plan(tmp_path, flops=0.5)


@pytest.mark.parametrize("name", ["policy", "knapsack"])
def test_a_rule_without_a_candidate(run, tmp_path, monkeypatch, name):
    monkeypatch.setattr(CandidateEvaluator, "evaluate", lambda *_: pytest.fail("a candidate was evaluated"))
    done = secateur.plan(session=run.folder / "config.yaml", allocator=name, flops=0.3, out=tmp_path / "p")
    assert done.plan.provenance.allocator == name
    assert done.plan.provenance.candidates == 0
    assert 0.2 < done.plan.cost["flops"] <= 0.3
    assert not done.trained_on_it
    small = secateur.apply(done.folder, finetune=0, out=tmp_path / "small")
    assert small.summary["pruned"]["flops"] == pytest.approx(done.plan.cost["flops"])


def test_a_rule_on_the_command_line(run, tmp_path):
    config, out = str(run.folder / "config.yaml"), tmp_path / "p"
    result = CliRunner().invoke(app, ["plan", config, "--flops", "30%", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert secateur.RatioPlan.load(out).provenance.allocator == DEFAULT_ALLOCATOR


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allocator": "random"}, "allocator random evaluates candidates: `secateur compare"),
        ({"allocator": "knapsac"}, "did you mean knapsack"),
        ({"allocator": "knapsack", "policy": "runs/mine"}, "one of the two chooses"),
    ],
)
def test_what_is_no_rule(run, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        secateur.plan(session=run.folder / "config.yaml", flops=0.3, out=tmp_path / "p", **given)


def test_two_configs_on_the_command_line(run, tmp_path):
    config = str(run.folder / "config.yaml")
    result = CliRunner().invoke(app, ["plan", config, "--config", "digits", "--out", str(tmp_path / "p")])
    assert isinstance(result.exception, ValueError)
    assert "leave one out" in str(result.exception)
