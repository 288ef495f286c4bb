"""The critic knows the cost of an action, and a policy that climbs it does not run away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ContinuousCritic

import zoo
from secateur.agents import learner as module
from secateur.agents.learner import ALGORITHMS, Learner
from secateur.configs.schema import AgentConfig
from secateur.envs import LayerSparsityEnv
from secateur.pruners.budget import Budget


def make(algorithm: str = "ddpg", episodes: int = 25) -> Learner:
    """On a network whose base plan is nearly the best."""
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    statistics = np.linspace(0, 1, 18, dtype=np.float32).reshape(6, 3)
    target = zoo.Target(structure, budget.fill(structure.units.astype(float)))
    env = LayerSparsityEnv(budget, target, statistics, action_penalty=2.0)
    return Learner(env, AgentConfig(algorithm=algorithm, episodes=episodes, warmup=10), seed=0)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_value_is_the_networks_less_the_penalty(algorithm: str) -> None:
    model = make(algorithm).model
    rng = np.random.default_rng(0)
    observations = torch.from_numpy(rng.uniform(0, 1, (5, *model.observation_space.shape)).astype(np.float32))
    actions = torch.tensor([[-1.0], [-0.5], [0.0], [0.3], [1.0]])
    for critic in (model.critic, model.critic_target):
        plain = ContinuousCritic.forward(critic, observations, actions)
        known = critic(observations, actions)
        assert len(known) == len(plain)
        for value, without in zip(known, plain, strict=True):
            assert torch.allclose(without - value, 2.0 * actions**2)
        assert torch.equal(critic.q1_forward(observations, actions), known[0])


def test_a_policy_stays_where_it_has_been(monkeypatch: pytest.MonkeyPatch) -> None:
    def furthest() -> float:
        return max(float(np.abs(episode.actions).mean()) for episode in make(episodes=40).run())

    assert furthest() < 0.4
    monkeypatch.setattr(module, "with_penalty", lambda policy, action_penalty: policy)
    assert furthest() > 0.6
