"""A search begins with what other networks taught; from scratch where it was asked, or nothing was learnt for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
from typer.testing import CliRunner

import secateur
from secateur.agents import SearchProblem, get_allocator
from secateur.agents.correction import shipped
from secateur.agents.learner import Learner
from secateur.agents.policy import Policy
from secateur.commands.cli import app
from secateur.envs import LayerSparsityEnv, layer_statistics
from secateur.pruners import LossModel
from secateur.storage.files import read_tensors, write_tensors

AGENT = {"episodes": 4, "warmup": 1, "updates": 1, "hidden": [4], "rerank": 1}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def told(folder: Path) -> list[dict]:
    """The lines but for their times, and for what hangs on those of the first."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "check", "fingerprint")} for line in lines(folder)]


def evaluated(folder: Path) -> tuple[list[tuple[int, ...]], list[float]]:
    """Every plan once, and its distance."""
    found = {tuple(line["kept"]): line["reconstruction_loss"] for line in lines(folder)}
    return [*found], [*found.values()]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> secateur.Session:
    return small.make(tmp_path_factory.mktemp("small"), "channels", agent=AGENT)


@pytest.fixture(scope="module")
def scratch(session, tmp_path_factory) -> secateur.Training:
    other = session.beside(overrides=["agent.warm_start=false"])
    return secateur.train(other, out=tmp_path_factory.mktemp("scratch") / "run")


def test_the_first_candidate_is_the_policys_plan(run):
    session = secateur.Session(run.folder / "config.yaml")
    problem = SearchProblem(session.budget, session.context)
    assert lines(run.folder)[0]["kept"] == get_allocator("policy").allocate(problem).tolist()
    expected = shipped().corrected(session.context, session.budget)
    for found, curve in zip(session.env().predicted.curves, expected.curves, strict=True):
        np.testing.assert_array_equal(found, curve)
    plain = LossModel.of(session.context)
    assert any(not np.allclose(found, curve) for found, curve in zip(expected.curves, plain.curves, strict=True))


def test_a_run_says_what_it_began_with(session, run, tmp_path):
    identity = shipped().identity
    assert lines(run.folder)[0]["fingerprint"]["agent"]["correction"] == identity
    assert run.summary["start"]["correction"] == identity
    assert "1512 plans of 18 networks" in run.summary["start"]["reason"]
    reporter = small.Saying()
    other = small.make(tmp_path, "weights", agent=AGENT)
    other.reporter = reporter
    done = secateur.train(other, out=tmp_path / "run")
    why = "no correction was learnt for method weights"
    assert f"the loss model begins as predicted: {why}" in reporter.said
    assert done.summary["start"] == {"correction": None, "reason": why}
    assert "correction" not in lines(done.folder)[0]["fingerprint"]["agent"]


def test_from_scratch_is_the_learner_on_the_loss_model_as_predicted(session, scratch):
    plain = LossModel.of(session.context)
    env = LayerSparsityEnv(
        session.budget,
        session.evaluator,
        layer_statistics(session.context),
        session.weights,
        plain,
        action_penalty=session.config.agent.action_penalty,
    )
    walked = list(Learner(env, session.config.agent, session.config.seed).run())
    for episode, line in zip(walked, lines(scratch.folder), strict=True):
        assert episode.actions.tolist() == line["actions"]
        assert episode.kept.tolist() == line["kept"]
        assert episode.reward == pytest.approx(line["reward"])
    assert scratch.summary["start"] == {"correction": None, "reason": "from scratch, as asked"}
    np.testing.assert_allclose(Policy.load(scratch.folder).factors, plain.fitted(*evaluated(scratch.folder)).factors)


@pytest.mark.slow
def test_from_scratch_on_the_command_line(run, tmp_path):
    given = [str(run.folder / "config.yaml"), "--set", "agent.episodes=1", "--set", "agent.warmup=1"]
    result = CliRunner().invoke(app, ["train", *given, "--from-scratch", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "the loss model begins as predicted: from scratch, as asked" in result.output
    assert lines(tmp_path / "run")[0]["fingerprint"]["agent"]["agent.warm_start"] is False


def cut(folder: Path, out: Path, count: int = 2) -> Path:
    """A copy that was killed after so many episodes."""
    shutil.copytree(folder, out)
    log = out / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:count]))
    return out


def test_a_run_does_not_go_on_with_another_beginning(session, scratch, run, tmp_path):
    begun = cut(scratch.folder, tmp_path / "scratch")
    with pytest.raises(ValueError, match=r"other agent \(agent\.warm_start was False, is True now\)"):
        secateur.train(session, resume=begun)
    begun = cut(run.folder, tmp_path / "warm")
    result = CliRunner().invoke(app, ["train", "--resume", str(begun), "--from-scratch"])
    assert "other agent (agent.warm_start was True, is False now)" in str(result.exception)


def test_a_run_that_knew_no_other_beginning_goes_on_from_scratch(session, scratch, tmp_path):
    """Logs of versions in which no search began warm, with a fingerprint and without one."""
    for name in ("marked", "bare"):
        folder = cut(scratch.folder, tmp_path / name)
        old = lines(folder)
        for line in old:
            line.pop("check")
        if name == "bare":
            del old[0]["fingerprint"]
        else:
            assert old[0]["fingerprint"]["agent"].pop("agent.warm_start") is False
        (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
        done = secateur.train(session, resume=folder)  # whose config would begin warm
        assert done.summary["replayed"] == 2
        assert told(folder) == told(scratch.folder)
        assert done.plan == scratch.plan
        assert "warm_start: false" in (folder / "config.yaml").read_text()


def test_a_run_of_another_correction_is_refused(run, tmp_path, monkeypatch):
    begun = cut(run.folder, tmp_path / "run")
    other = replace(shipped(), bias=shipped().bias + 0.01)
    monkeypatch.setattr("secateur.commands.fingerprints.shipped", lambda: other)
    expected = rf"correction was '{shipped().identity}', is '{other.identity}' now"
    with pytest.raises(ValueError, match=expected):
        secateur.train(resume=begun)


def test_a_policy_holds_what_it_began_with(run, tmp_path):
    session = secateur.Session(run.folder / "config.yaml")
    policy = Policy.load(run.folder)
    assert policy.start == shipped().identity
    began = shipped().corrected(session.context, session.budget)
    np.testing.assert_allclose(policy.factors, began.fitted(*evaluated(run.folder)).factors)
    env = session.env()
    env.set_loss_model(began)
    assert secateur.plan(run.folder, out=tmp_path / "warm").plan.kept.tolist() == policy.plan(env).tolist()


def changed(folder: Path, out: Path, start: str | None) -> Path:
    """The policy of a run, with its config, as if it had begun with something else."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("policy.safetensors"))
    tensors, about = read_tensors(folder / "policy.safetensors")
    del about["start"]
    write_tensors(out / "policy.safetensors", tensors, about if start is None else {**about, "start": start})
    return out


def test_a_policy_of_an_older_version_corrects_the_loss_model_as_predicted(run, tmp_path):
    folder = changed(run.folder, tmp_path / "old", None)
    session = secateur.Session(folder / "config.yaml", overrides=["agent.warm_start=false"])
    expected = Policy.load(folder).plan(session.env())
    assert secateur.plan(folder, out=tmp_path / "plan").plan.kept.tolist() == expected.tolist()


def test_a_policy_of_another_correction_is_refused(run, tmp_path):
    folder = changed(run.folder, tmp_path / "other", "1-00000000")
    with pytest.raises(ValueError, match=rf"from correction 1-00000000, this version has {shipped().identity}: train"):
        secateur.plan(folder, out=tmp_path / "plan")
