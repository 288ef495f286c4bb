from __future__ import annotations

import numpy as np
import pytest

from secateur.agents import ALGORITHMS, Learner
from secateur.configs.schema import AgentConfig

from ..toys import toy_env


def config(episodes: int, **values) -> AgentConfig:
    return AgentConfig(**{"episodes": episodes, "warmup": 3, "hidden": [32, 32], "updates": 2, **values})


def test_it_learns_a_toy_with_a_known_optimum():
    env = toy_env()
    learner = Learner(env, config(90, warmup=15, hidden=[64, 64]), seed=0)
    rewards = [episode.reward for episode in learner.run()]
    actions = learner.policy_actions()
    env.reset()
    for action in actions:
        *_, info = env.step(np.array([action], dtype=np.float32))
    best = env.evaluator.best
    optimum = env.evaluator.evaluate(env.budget.fill((1 - best) * env.budget.structure.widths))
    top = env.rewards(optimum)
    gap = sum(top.values()) - rewards[0]
    assert gap > 0
    assert sum(info["reward_terms"].values()) - rewards[0] > 0.6 * gap
    assert np.mean(rewards[-20:]) > np.mean(rewards[1:15])


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_replayed_run_goes_on_as_if_it_had_never_stopped(algorithm):
    whole = list(Learner(toy_env(), config(9, algorithm=algorithm), seed=3).run())
    past = [[float(a) for a in episode.actions] for episode in whole[:6]]
    resumed = list(Learner(toy_env(), config(9, algorithm=algorithm), seed=3).run(past))
    for first, second in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(first.actions, second.actions)
        assert first.reward == second.reward


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_seed_decides(algorithm):
    runs = [
        [episode.actions.tolist() for episode in Learner(toy_env(), config(6, algorithm=algorithm), seed).run()]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_first_episode_is_the_base_plan_and_noise_never_dies():
    episodes = list(Learner(toy_env(), config(60, noise_start=0.5, noise_end=0.1), seed=0).run())
    assert episodes[0].actions.tolist() == [0.0] * 6
    explored = [episode for episode in episodes if episode.number % 25]
    assert min(episode.noise for episode in explored) >= 0.1
    assert [episode.noise for episode in explored[2:]] == sorted((e.noise for e in explored[2:]), reverse=True)
    assert {episode.number for episode in episodes if episode.noise == 0.0} == {0, 25, 50}


def test_warm_up_stays_near_the_budget():
    env = toy_env(0.5)
    episodes = list(Learner(env, config(20, warmup=20), seed=0).run())
    costs = [episode.evaluation.flops for episode in episodes]
    assert min(costs) > 0.47
    assert max(costs) <= 0.5


def test_demonstrations_are_walked_as_given():
    env = toy_env()
    shown = env.budget.fill(np.linspace(0.3, 1.0, 6) * env.budget.structure.widths)
    episodes = list(Learner(env, config(4), seed=0, demonstrations=[shown]).run())
    assert np.abs(episodes[1].widths - shown).max() <= 1
