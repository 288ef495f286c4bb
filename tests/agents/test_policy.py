"""A policy on disk is the policy; on another network it is only what does not depend on the layer."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from secateur.agents.learner import Learner
from secateur.agents.policy import POLICY_NAME, Policy
from secateur.configs.schema import AgentConfig
from secateur.envs import LayerSparsityEnv
from secateur.pruners.budget import Budget


def environment(name: str = "digits", fraction: float = 0.5, features: int = 18) -> LayerSparsityEnv:
    structure = zoo.structure(name)
    budget = Budget(structure, "flops", fraction)
    dense = structure.units
    statistics = np.zeros((len(dense), features), np.float32)
    statistics[:, 0] = np.linspace(0, 1, len(dense))
    optimum = budget.fill(np.where(np.arange(len(dense)) % 2, 1.0, 0.3) * dense)
    return LayerSparsityEnv(budget, zoo.Target(structure, optimum), statistics, action_penalty=2.0)


@pytest.fixture(scope="module")
def trained() -> Learner:
    config = AgentConfig(episodes=12, warmup=4, hidden=[16], updates=2, batch_size=16)
    learner = Learner(environment(), config, 0)
    list(learner.run())
    return learner


def test_it_comes_back_as_it_was(trained, tmp_path):
    trained_plans = [trained.policy_plan(fraction).tolist() for fraction in (0.3, 0.5, 0.7)]
    Policy.of(trained).save(tmp_path / POLICY_NAME)
    for path in (tmp_path, tmp_path / POLICY_NAME):
        policy = Policy.load(path)
        found = [policy.plan(environment(fraction=fraction)).tolist() for fraction in (0.3, 0.5, 0.7)]
        assert found == trained_plans


def test_it_costs_no_candidate(trained):
    env = environment()
    Policy.of(trained).plan(env)
    assert env.evaluator.calls == 0


def test_the_last_episodes_count_too():
    config = AgentConfig(episodes=3, warmup=3, hidden=[16])
    learner = Learner(environment(), config, 0, workers=3)
    episodes = list(learner.run())
    told = learner.env.predicted.fitted(
        [episode.kept for episode in episodes], [episode.evaluation.reconstruction_loss for episode in episodes]
    )
    assert np.array_equal(Policy.of(learner).factors, told.factors)
    assert np.ptp(told.factors) > 0.0


def test_what_was_learnt_of_the_layers_stays_with_their_network(trained):
    policy = Policy.of(trained)
    here, there = environment(), environment("resnet20")
    assert policy.knows(here)
    assert not policy.knows(there)
    policy.plan(here)
    kept = policy.plan(there)
    assert np.array_equal(here.loss_model.factors, trained.env.loss_model.factors)
    assert np.ptp(here.loss_model.factors) > 0.0
    assert np.all(there.loss_model.factors == 1.0)
    assert 0.45 < there.budget.structure.fraction("flops", kept) <= 0.5


def test_other_observations_are_refused(trained, monkeypatch):
    policy = Policy.of(trained)
    monkeypatch.setattr(LayerSparsityEnv, "feature_names", ["index", "own"])
    with pytest.raises(ValueError, match=r"trained on other observations .*'own'.*train it anew"):
        policy.plan(environment())


def test_files_that_are_not_policies(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give a run folder, or a policy\.safetensors"):
        Policy.load(tmp_path)
    path = tmp_path / POLICY_NAME
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged"):
        Policy.load(path)
    Policy.of(trained).save(path)
    path.write_bytes(path.read_bytes()[:-9] + b"\x00" * 9)
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged"):
        Policy.load(path)
