"""The learner must learn a toy, repeat itself, and go on where it was interrupted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import zoo
from secateur.agents.learner import ALGORITHMS, Episode, Learner
from secateur.configs.schema import AgentConfig
from secateur.envs import Evaluation, LayerSparsityEnv
from secateur.envs.reward import WORST_GAIN
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel
from secateur.pruners.structure import PlanError

EVERY = pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))


def environment(action_penalty: float = 2.0) -> LayerSparsityEnv:
    """Every second layer should be cut to a fifth of the others, and an observation says which."""
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    odd = np.arange(6) % 2
    optimum = budget.fill(np.where(odd, 1.0, 0.2) * structure.units)
    statistics = np.stack([np.linspace(0, 1, 6), structure.units / 64, odd], 1).astype(np.float32)
    return LayerSparsityEnv(budget, zoo.Target(structure, optimum), statistics, action_penalty=action_penalty)


def config(**values: Any) -> AgentConfig:
    small = {"episodes": 9, "warmup": 3, "hidden": [16], "updates": 1, "batch_size": 16}
    return AgentConfig(**{**small, **values})


def learner(seed: int = 0, workers: int = 1, action_penalty: float = 2.0, **values: Any) -> Learner:
    return Learner(environment(action_penalty), config(**values), seed, workers=workers)


def walked(env: LayerSparsityEnv, actions: np.ndarray, budget: float = 0.5) -> tuple[list[float], dict[str, Any]]:
    """What an episode's steps are paid, and the last one's info."""
    env.reset(options={"budget": budget})
    rewards, info = [], {}
    for action in actions:
        _, reward, *_, info = env.step(np.array([action], dtype=np.float32))
        rewards.append(reward)
    return rewards, info


def quality(agent: Learner) -> float:
    """Of the policy's plan."""
    return agent.env.weights.quality(agent.env.evaluator.evaluate(agent.policy_plan(0.5)))


def gains(episodes: list[Episode]) -> list[float]:
    """What of the base plan's loss every plan won back; no budget but one, and the dense network's quality is 1."""
    lost = [1.0 - e.quality for e in episodes]
    return [max(WORST_GAIN, 1.0 - loss / lost[0]) for loss in lost]


def spied(agent: Learner) -> list[tuple[float, float]]:
    """(action, reward) of every transition that it stores from now on."""
    stored: list[tuple[float, float]] = []
    buffer = agent.model.replay_buffer
    add = buffer.add

    def spy(observation: Any, following: Any, action: Any, reward: Any, *rest: Any) -> None:
        stored.append((float(action.item()), float(reward.item())))
        add(observation, following, action, reward, *rest)

    buffer.add = spy
    return stored


def assert_same(first: list[Episode], second: list[Episode]) -> None:
    assert [e.number for e in first] == [e.number for e in second]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.actions, b.actions), a.number
        assert np.array_equal(a.kept, b.kept)
        assert (a.reward, a.quality, a.terms) == (b.reward, b.quality, b.terms)
        assert (a.noise, a.evaluation) == (b.noise, b.evaluation)


def test_it_learns() -> None:
    # 1 is the optimum's quality; the uniform plan's is 0.80, and random actions' 0.66 on average
    agent = learner(episodes=50, warmup=15, hidden=[64, 64], updates=3, batch_size=64)
    episodes = list(agent.run())
    base = episodes[0].quality
    rng = np.random.default_rng(0)
    random = np.mean([walked(environment(), rng.uniform(-1, 1, 6))[1]["quality"] for _ in range(50)])
    learned = quality(agent)
    assert base == pytest.approx(0.795, abs=0.01)
    assert random < base
    assert learned > base + 0.5 * (1.0 - base)
    late = np.mean([e.quality for e in episodes[-15:]])
    assert late > np.mean([e.quality for e in episodes[1:16]]) + 0.03  # although it still explores


def test_the_policy_learns_what_the_loss_model_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossModel, "fitted", lambda self, _plans, _losses: self)
    agent = learner(episodes=60, warmup=20, hidden=[64, 64], updates=4, batch_size=64, action_penalty=0.05)
    episodes = list(agent.run())
    assert quality(agent) > episodes[0].quality + 0.05


def test_the_loss_model_learns_without_a_policy() -> None:
    agent = learner(episodes=40, warmup=40)
    episodes = list(agent.run())
    assert quality(agent) > episodes[0].quality + 0.05


def test_the_loss_model_learns_from_the_distance_whatever_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = learner(episodes=6, warmup=6)
    evaluate, noise = agent.env.evaluator.evaluate_all, np.random.default_rng(0)

    def by_chance(plans: Any) -> list[Evaluation]:
        return [replace(evaluation, accuracy=noise.uniform(0, 100)) for evaluation in evaluate(plans)]

    first = agent.env.loss_model
    monkeypatch.setattr(agent.env.evaluator, "evaluate_all", by_chance)
    episodes = list(agent.run())
    agent.env.reset()
    told = first.fitted([e.kept for e in episodes], [e.evaluation.reconstruction_loss for e in episodes])
    assert np.array_equal(agent.env.loss_model.factors, told.factors)
    assert np.ptp(told.factors) > 0.0


def test_without_updates_it_does_not_learn() -> None:
    agent = learner(updates=0)
    untrained = {name: tensor.clone() for name, tensor in agent.model.policy.state_dict().items()}
    assert len(list(agent.run())) == 9
    assert all(torch.equal(untrained[name], t) for name, t in agent.model.policy.state_dict().items())


@EVERY
def test_an_untrained_policy_is_the_loss_models_own(algorithm: str) -> None:
    agent = learner(algorithm=algorithm)
    base = next(agent.run()).kept
    assert np.abs(agent.policy_plan(0.5) - base).max() <= 1


@EVERY
def test_a_replayed_run_goes_on_as_the_uninterrupted_one(algorithm: str) -> None:
    whole = list(learner(3, algorithm=algorithm).run())
    for stop in (2, 6):  # in warm-up, while learning
        past = [episode.actions.tolist() for episode in whole[:stop]]
        resumed = learner(3, algorithm=algorithm)
        assert_same(list(resumed.run(past)), whole)


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8])
def test_a_group_that_was_cut_off_is_walked_to_its_end(stop: int) -> None:
    whole = list(learner(3, workers=3, episodes=10, warmup=1).run())
    past = [episode.actions.tolist() for episode in whole[:stop]]
    assert_same(list(learner(3, workers=3, episodes=10, warmup=1).run(past)), whole)


def test_a_group_is_evaluated_together_and_learnt_from_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    agent = learner(workers=4, episodes=10, warmup=1)
    evaluate, learn = agent.env.evaluator.evaluate_all, agent._learn
    monkeypatch.setattr(agent.env.evaluator, "evaluate_all", lambda plans: events.append(len(plans)) or evaluate(plans))
    monkeypatch.setattr(agent, "_learn", lambda number: events.append(f"learn {number}") or learn(number))
    episodes = list(agent.run())
    assert events == [
        4, *(f"learn {n}" for n in range(4)), 4, *(f"learn {n}" for n in range(4, 8)), 2, "learn 8", "learn 9",
    ]  # fmt: skip
    alone = learner(episodes=10, warmup=1)
    assert_same(episodes[:2], list(alone.run())[:2])  # nothing had been learnt yet
    assert agent.model._n_updates == alone.model._n_updates
    stored = agent.model.replay_buffer.actions[: 10 * 6, 0, 0]
    assert np.array_equal(stored, np.concatenate([episode.actions for episode in episodes]))


@EVERY
def test_a_replay_asks_nobody(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    past = [episode.actions.tolist() for episode in itertools.islice(learner(3, algorithm=algorithm).run(), 6)]
    resumed = learner(3, algorithm=algorithm)
    monkeypatch.setattr(resumed, "_greedy", lambda *_: pytest.fail("asked for an action that is known"))
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
    assert first[0].quality == second[0].quality  # the base plan
    assert all(not np.array_equal(a.actions, b.actions) for a, b in zip(first[1:], second[1:], strict=True))


def test_torchs_state_between_episodes_plays_no_part() -> None:
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
    buffer = agent.model.replay_buffer
    assert buffer.rewards[:6].ravel().tolist() == [0.0] * 6
    assert buffer.dones[:6].ravel().tolist() == [0.0] * 5 + [1.0]


def test_what_is_stored_is_what_was_done() -> None:
    agent = learner()
    episodes = list(agent.run())
    buffer = agent.model.replay_buffer
    assert np.array_equal(buffer.actions[: 9 * 6, 0, 0], np.concatenate([e.actions for e in episodes]))
    penalties = 2.0 * buffer.actions[:54, 0, 0].reshape(9, 6) ** 2
    rewards = buffer.rewards[:, 0].reshape(9, 6) + penalties
    np.testing.assert_allclose(rewards[:, :-1], 0.0, atol=1e-6)
    np.testing.assert_allclose(rewards[:, -1], gains(episodes), atol=1e-6)
    observations, following = buffer.observations[:, 0].reshape(9, 6, -1), buffer.next_observations[:, 0]
    assert np.array_equal(observations[:, 1:], following.reshape(9, 6, -1)[:, :-1])


@pytest.mark.parametrize("budgets", [None, (0.3, 0.7)])
def test_what_the_environment_pays_is_what_is_stored(budgets: tuple[float, float] | None) -> None:
    """Digit for digit, in its order: the learner adds nothing to the reward and takes nothing from it."""
    agent = learner(episodes=12, warmup=4, updates=2, budgets=budgets)
    stored = spied(agent)
    episodes = list(agent.run())
    fresh = environment()
    paid = []
    for episode in episodes:
        rewards, info = walked(fresh, episode.actions, episode.budget)
        assert np.array_equal(info["kept"], episode.kept)
        assert episode.reward == sum(rewards)
        paid += rewards
    assert [reward for _, reward in stored] == paid
    assert [action for action, _ in stored] == np.concatenate([e.actions for e in episodes]).tolist()
    assert np.array_equal(fresh.best, agent.env.best)
    assert len(set(paid)) > 40  # it is not all alike


def test_what_workers_have_evaluated_together_is_paid_as_one_by_one() -> None:
    agent = learner(episodes=12, warmup=2, workers=4)
    stored = spied(agent)
    episodes = list(agent.run())
    fresh = environment()
    paid = []
    for episode in episodes:
        paid += [fresh.penalty(float(action)) for action in episode.actions]
        paid[-1] += fresh.settle(episode.kept, fresh.evaluator.evaluate(episode.kept), episode.budget)
    assert [reward for _, reward in stored] == paid


def test_every_transition_is_worth_the_plans_reward_once() -> None:
    agent = learner(action_penalty=0.0)
    episodes = list(agent.run())
    sample = agent.model.replay_buffer._get_samples(np.arange(9 * 6))
    expected = np.repeat(gains(episodes), 6)
    np.testing.assert_allclose(sample.rewards[:, 0].numpy(), expected, atol=1e-6)
    assert bool((sample.dones == 1.0).all())


@pytest.mark.parametrize(("episodes", "warmup"), [(60, 10), (200, 20), (3, 10), (30, 0)])
def test_exploration_never_dies(episodes: int, warmup: int) -> None:
    agent = learner(episodes=episodes, warmup=warmup, noise_start=0.5, noise_end=0.1)
    noise = [agent._noise(number) for number in range(episodes)]
    calm = [number for number, value in enumerate(noise) if value == 0.0]
    assert calm == [0, *(n for n in range(1, episodes) if n > warmup and (n % 25 == 0 or n == episodes - 1))]
    loud = [value for value in noise if value]
    assert min(loud) >= 0.1
    assert loud == sorted(loud, reverse=True)
    assert loud[0] == pytest.approx(0.5, abs=0.02)
    if episodes > 2 * warmup + 10:
        assert loud[-1] == pytest.approx(0.1, abs=0.03)


def test_exploring_episodes_are_not_the_policys() -> None:
    episodes = list(learner(noise_start=0.5).run())
    for episode in episodes[1:-1]:
        assert episode.noise > 0.0
        assert np.ptp(episode.actions) > 0.0
    assert all(np.abs(e.actions).max() <= 1.0 for e in episodes)
    spread = np.std([e.actions for e in episodes[1:4]])
    assert 0.25 < spread < 0.7  # warm-up is round the base plan, with the noise it says


def test_warm_up_stays_near_the_budget() -> None:
    costs = [episode.evaluation.flops for episode in learner(episodes=20, warmup=20).run()]
    assert min(costs) > 0.47
    assert max(costs) <= 0.5


def test_a_policys_plan_evaluates_nothing_and_leaves_the_run_alone() -> None:
    agent = learner(5)
    found = []
    for episode in agent.run():
        found.append(episode)
        calls = agent.env.evaluator.calls
        plan = agent.policy_plan(0.7)
        assert agent.env.evaluator.calls == calls
        assert 0.65 < agent.env.budget.structure.fraction("flops", plan) <= 0.7
    assert_same(found, list(learner(5).run()))


def test_every_episode_walks_on_a_budget_of_its_own() -> None:
    agent = learner(episodes=30, warmup=5, budgets=(0.3, 0.7))
    episodes = list(agent.run())
    for episode in episodes:
        asked = episode.noise == 0.0
        assert (episode.budget == 0.5) == asked
        assert 0.3 <= episode.budget <= 0.7
        assert episode.budget - 0.04 < episode.evaluation.flops <= episode.budget
    drawn = [e.budget for e in episodes if e.noise]
    assert min(drawn) < 0.4 < 0.6 < max(drawn)
    past = [episode.actions.tolist() for episode in episodes[:11]]
    assert_same(list(learner(episodes=30, warmup=5, budgets=(0.3, 0.7)).run(past)), episodes)


def test_one_training_is_good_on_every_budget() -> None:
    agent = learner(episodes=60, warmup=15, budgets=(0.3, 0.7))
    untrained = learner()
    next(untrained.run())
    list(agent.run())
    before, after = (
        [a.env.evaluator.evaluate(a.policy_plan(f)).reconstruction_loss for f in (0.3, 0.4, 0.5, 0.6, 0.7)]
        for a in (untrained, agent)
    )
    assert sum(after) < 0.8 * sum(before)


def test_budgets_that_cannot_be_met_are_refused_before_the_first_episode() -> None:
    with pytest.raises(PlanError, match=r"budget\.flops = 0\.001 cannot be met"):
        learner(budgets=(0.001, 0.7))
    with pytest.raises(ValueError, match="the least first, then the most"):
        config(budgets=(0.7, 0.3))


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
        assert episode.quality == pytest.approx(sum(episode.terms.values()))
        assert episode.quality == agent.env.weights.quality(episode.evaluation)
        paid = agent.model.replay_buffer.rewards[6 * episode.number : 6 * episode.number + 6]
        assert episode.reward == pytest.approx(float(paid.sum()), abs=1e-6)
        assert agent.env.budget.cost(episode.kept) <= agent.env.budget.limit
        assert episode.seconds > 0.0
    assert agent.seconds > 0.0
