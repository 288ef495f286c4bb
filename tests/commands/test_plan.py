"""`secateur plan`: a policy's word for any budget, without a candidate."""

from __future__ import annotations

import re

import pytest
import small
import torch
from typer.testing import CliRunner

import secateur
from secateur.commands.cli import app
from secateur.commands.plan import LEARNT, RULE
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
    assert "allocator policy\n" in result.output
    assert secateur.RatioPlan.load(out).provenance.allocator == LEARNT
    named = secateur.plan(session=config, allocator=LEARNT, flops=0.3, out=tmp_path / "named").plan
    assert secateur.RatioPlan.load(out).kept.tolist() == named.kept.tolist()


def well_trained(run) -> secateur.Session:
    """The network of the run with norms and filters of very different strength, as long training leaves them."""
    session = secateur.Session(run.folder / "config.yaml")
    model, strengths = session.model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
            norm.weight.mul_((2.0 * torch.randn(len(norm.weight), generator=strengths)).exp())
    loaded = session.loaded
    images = secateur.Images(loaded.calibration, loaded.search, loaded.test)
    return secateur.Session(session.config, model=model, images=images)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["layers.cut=all"], r"[0-9.]+ % of its layers' features are unlike all that was learnt from \(.*trunk"),
        (["budget.params=0.3"], "corrections were learnt from budgets of FLOPs, not of params"),
        (["method=weights", "budget.params=0.3"], "no correction was learnt for method weights"),
        (["repair.final.kind=gram"], "it was learnt from networks that were repaired in sequence, not with"),
    ],
)
def test_what_is_unlike_all_that_was_learnt_from_is_left_to_a_rule(run, tmp_path, overrides, why):
    reporter = small.Saying()
    session = secateur.Session(run.folder / "config.yaml", overrides=overrides, reporter=reporter)
    done = secateur.plan(session=session, out=tmp_path / "p")
    assert re.fullmatch(f"allocator knapsack, not policy: {why}.*", reporter.said[-1])
    assert done.plan.provenance.allocator == RULE
    expected = secateur.plan(session=session, allocator=RULE, out=tmp_path / "rule").plan
    assert done.plan.kept.tolist() == expected.kept.tolist()


def test_so_is_a_network_that_was_trained_longer(run, tmp_path):
    session = well_trained(run)
    session.reporter = small.Saying()
    done = secateur.plan(session=session, out=tmp_path / "p")
    assert done.plan.provenance.allocator == RULE
    assert "bn_spread" in session.reporter.said[-1]


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
