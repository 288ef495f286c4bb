"""The learner must learn a toy, repeat itself, and go on where it was interrupted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import zoo
from secateur.agents.learner import ALGORITHMS, Episode, Learner
from secateur.configs.schema import AgentConfig
from secateur.envs import LayerSparsityEnv
from secateur.pruners.budget import Budget

EVERY = pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))


def environment() -> LayerSparsityEnv:
    """Every second layer should be cut to a fifth of the others, and an observation says which."""
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    odd = np.arange(6) % 2
    optimum = budget.fill(np.where(odd, 1.0, 0.2) * structure.widths)
    statistics = np.stack([np.linspace(0, 1, 6), structure.widths / 64, odd], 1).astype(np.float32)
    return LayerSparsityEnv(budget, zoo.Target(structure, optimum), statistics)


def config(**values: Any) -> AgentConfig:
    small = {"episodes": 9, "warmup": 3, "hidden": [16], "updates": 1, "batch_size": 16, "demonstrations": []}
    return AgentConfig(**{**small, **values})


def learner(seed: int = 0, **values: Any) -> Learner:
    return Learner(environment(), config(**values), seed)


def paid(env: LayerSparsityEnv, actions: np.ndarray) -> float:
    env.reset()
    for action in actions:
        _, reward, *_ = env.step(np.array([action], dtype=np.float32))
    return float(reward)


def assert_same(first: list[Episode], second: list[Episode]) -> None:
    assert [e.number for e in first] == [e.number for e in second]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.actions, b.actions), a.number
        assert np.array_equal(a.widths, b.widths)
        assert (a.reward, a.terms, a.noise, a.evaluation) == (b.reward, b.terms, b.noise, b.evaluation)


def test_it_learns() -> None:
    # 1 is the optimum's reward; the uniform plan's is 0.80, and random actions' 0.66 on average
    agent = learner(episodes=50, warmup=15, hidden=[64, 64], updates=3, batch_size=64)
    episodes = list(agent.run())
    base = episodes[0].reward
    rng = np.random.default_rng(0)
    random = np.mean([paid(environment(), rng.uniform(-1, 1, 6)) for _ in range(50)])
    learned = paid(environment(), agent.policy_actions())
    assert base == pytest.approx(0.795, abs=0.01)
    assert random < base
    assert learned > base + 0.5 * (1.0 - base)
    late = np.mean([e.reward for e in episodes[-15:]])
    assert late > np.mean([e.reward for e in episodes[1:16]]) + 0.03  # although it still explores


def test_without_updates_it_does_not_learn() -> None:
    agent = learner(updates=0)
    untrained = agent.policy_actions()
    assert len(list(agent.run())) == 9
    assert np.array_equal(agent.policy_actions(), untrained)


@EVERY
def test_a_replayed_run_goes_on_as_the_uninterrupted_one(algorithm: str) -> None:
    whole = list(learner(3, algorithm=algorithm).run())
    for stop in (2, 6):  # in warm-up, while learning
        past = [episode.actions.tolist() for episode in whole[:stop]]
        resumed = learner(3, algorithm=algorithm)
        assert_same(list(resumed.run(past)), whole)


@EVERY
def test_a_replay_asks_nobody(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    past = [episode.actions.tolist() for episode in itertools.islice(learner(3, algorithm=algorithm).run(), 6)]
    resumed = learner(3, algorithm=algorithm)
    monkeypatch.setattr(resumed, "_act", lambda *_: pytest.fail("asked for an action that is known"))
    assert len(list(itertools.islice(resumed.run(past), 6))) == 6


@EVERY
def test_same_seed_same_run(algorithm: str) -> None:
    first, second = (list(learner(7, algorithm=algorithm).run()) for _ in range(2))
    assert_same(first, second)


@EVERY
def test_one_that_diverges_says_so(algorithm: str) -> None:
    with pytest.raises(RuntimeError, match=r"diverged after \d episodes .* below agent\.learning_rate=1e\+30"):
        list(learner(algorithm=algorithm, learning_rate=1e30).run())


def test_other_seed_other_run() -> None:
    first, second = (list(learner(seed).run()) for seed in (0, 1))
    assert first[0].reward == second[0].reward  # the base plan
    assert all(not np.array_equal(a.actions, b.actions) for a, b in zip(first[1:], second[1:], strict=True))


def test_torchs_state_between_episodes_plays_no_part() -> None:
    import torch

    calm, disturbed = learner(2), learner(2)
    expected = list(calm.run())
    found = []
    for episode in disturbed.run():
        found.append(episode)
        torch.manual_seed(episode.number)
        np.random.seed(episode.number)
    assert_same(found, expected)


def test_the_first_episode_is_the_base_plan_and_the_baseline() -> None:
    agent = learner()
    first = next(agent.run())
    assert first.actions.tolist() == [0.0] * 6
    assert first.noise == 0.0
    assert agent.baseline == first.reward
    buffer = agent.model.replay_buffer
    assert buffer.rewards[:6].ravel().tolist() == [0.0] * 6
    assert buffer.dones[:6].ravel().tolist() == [0.0] * 5 + [1.0]


def test_what_is_stored_is_what_was_done() -> None:
    agent = learner()
    episodes = list(agent.run())
    buffer = agent.model.replay_buffer
    assert np.array_equal(buffer.actions[: 9 * 6, 0, 0], np.concatenate([e.actions for e in episodes]))
    rewards = buffer.rewards[:, 0].reshape(9, 6)
    assert np.all(rewards[:, :-1] == 0.0)
    np.testing.assert_allclose(rewards[:, -1], [e.reward - episodes[0].reward for e in episodes], atol=1e-6)
    observations, following = buffer.observations[:, 0].reshape(9, 6, -1), buffer.next_observations[:, 0]
    assert np.array_equal(observations[:, 1:], following.reshape(9, 6, -1)[:, :-1])


def test_every_transition_is_worth_the_plans_reward_once() -> None:
    agent = learner()
    episodes = list(agent.run())
    sample = agent.model.replay_buffer._get_samples(np.arange(9 * 6))
    expected = np.repeat([e.reward - episodes[0].reward for e in episodes], 6)
    np.testing.assert_allclose(sample.rewards[:, 0].numpy(), expected, atol=1e-6)
    assert bool((sample.dones == 1.0).all())


@pytest.mark.parametrize(("episodes", "warmup"), [(60, 10), (200, 20), (3, 10), (30, 0)])
def test_exploration_never_dies(episodes: int, warmup: int) -> None:
    agent = learner(episodes=episodes, warmup=warmup, noise_start=0.5, noise_end=0.1)
    noise = [agent._noise(number) for number in range(episodes)]
    calm = [number for number, value in enumerate(noise) if value == 0.0]
    assert calm == [0, *(n for n in range(1, episodes) if n > warmup and n % 25 == 0)]
    loud = [value for value in noise if value]
    assert min(loud) >= 0.1
    assert loud == sorted(loud, reverse=True)
    assert loud[0] == pytest.approx(0.5, abs=0.02)
    if episodes > 2 * warmup + 10:
        assert loud[-1] == pytest.approx(0.1, abs=0.02)


def test_exploring_episodes_are_not_the_policys() -> None:
    episodes = list(learner(noise_start=0.5).run())
    for episode in episodes[1:]:
        assert episode.noise > 0.0
        assert np.ptp(episode.actions) > 0.0
    assert all(np.abs(e.actions).max() <= 1.0 for e in episodes)
    spread = np.std([e.actions for e in episodes[1:4]])
    assert 0.25 < spread < 0.7  # warm-up is round the base plan, with the noise it says


def test_warm_up_stays_near_the_budget() -> None:
    costs = [episode.evaluation.flops for episode in learner(episodes=20, warmup=20).run()]
    assert min(costs) > 0.47
    assert max(costs) <= 0.5


def test_demonstrations_are_walked_first() -> None:
    env = environment()
    plans = [env.budget.fill(np.linspace(1, 6, 6)), env.budget.fill(np.linspace(6, 1, 6))]
    agent = Learner(env, config(), 0, plans)
    episodes = list(agent.run())
    for episode, plan in zip(episodes[1:], plans, strict=False):
        assert episode.widths.tolist() == plan.tolist()
        assert episode.noise == 0.0
    assert agent.warmup == 3 + 2
    assert all(episode.noise > 0.0 for episode in episodes[3:])
    assert_same(list(Learner(environment(), config(), 0, plans).run([e.actions for e in episodes[:6]])), episodes)


def test_policy_actions_evaluate_nothing_and_leave_the_run_alone() -> None:
    agent = learner(5)
    found = []
    for episode in agent.run():
        found.append(episode)
        calls = agent.env.evaluator.calls
        actions = agent.policy_actions()
        assert agent.env.evaluator.calls == calls
        assert actions.shape == (6,)
        assert np.abs(actions).max() <= 1.0
    assert_same(found, list(learner(5).run()))


@EVERY
def test_a_single_layer_is_a_walk_too(algorithm: str) -> None:
    structure = zoo.structure("own_shortcut")
    budget = Budget(structure, "flops", 0.7)
    env = LayerSparsityEnv(budget, zoo.Target(structure, budget.least), np.zeros((1, 1), np.float32))
    episodes = list(Learner(env, config(algorithm=algorithm, episodes=6), 0).run())
    assert len(episodes) == 6


def test_episodes_report_what_happened() -> None:
    agent = learner()
    for episode in agent.run():
        assert episode.reward == pytest.approx(sum(episode.terms.values()))
        assert agent.env.budget.cost(episode.widths) <= agent.env.budget.limit
        assert episode.seconds > 0.0
    assert agent.seconds > 0.0
