from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check

from secateur.envs import ENV_ID, WALK_FEATURES, LayerSparsityEnv, RewardWeights

from ..toys import toy_env


@pytest.fixture
def env() -> LayerSparsityEnv:
    return toy_env()


def walk(env, actions):
    observations = [env.reset(seed=0)[0]]
    info, total = {}, 0.0
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        observations.append(observation)
        total += reward
        assert not truncated
    assert terminated
    return observations, total, info


def test_both_checkers_pass_without_a_warning(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)


def test_it_is_registered(env):
    made = gym.make(ENV_ID, budget=env.budget, evaluator=env.evaluator, statistics=env.statistics)
    assert ENV_ID == "secateur/LayerSparsity-v0"
    assert made.observation_space == env.observation_space


SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Starting State",
    "Reward",
    "Episode End",
    "Arguments",
    "Version History",
)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_every_section(section):
    assert f"## {section}\n" in (LayerSparsityEnv.__doc__ or "")


def test_twin_walks_are_identical():
    actions = np.random.default_rng(0).uniform(-1, 1, 6)
    first, second = (walk(toy_env(), actions) for _ in range(2))
    assert first[1] == second[1]
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_doing_nothing_is_uniform(env):
    _, _, info = walk(env, [0.0] * 6)
    sparsities = 1 - info["widths"] / env.budget.structure.widths
    assert np.ptp(sparsities) < 1.5 / 16


@settings(deadline=None, max_examples=40)
@given(actions=st.lists(st.floats(-1, 1), min_size=6, max_size=6), fraction=st.floats(0.15, 1.0))
def test_no_actions_exceed_the_budget_and_all_spend_it(actions, fraction):
    env = toy_env(fraction)
    observations, _, info = walk(env, actions)
    assert env.budget.cost(info["widths"]) <= env.budget.limit
    wider = info["widths"] + np.array([0] * 5 + [1])
    assert wider[-1] > env.budget.structure.widths[-1] or env.budget.cost(wider) > env.budget.limit
    assert all(env.observation_space.contains(observation) for observation in observations)


def test_actions_reach_from_the_least_to_the_most(env):
    widths = [walk(env, [action, *[0.0] * 5])[2]["widths"][0] for action in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    low, high = env.budget.bounds([])
    assert widths[0] == high
    assert widths[-1] == low
    assert widths == sorted(widths, reverse=True)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_action_for_is_the_inverse(seed):
    env = toy_env()
    _, _, info = walk(env, np.random.default_rng(seed).uniform(-1, 1, 6))
    env.reset()
    for width in info["widths"]:
        *_, again = env.step(np.array([env.action_for(int(width))], dtype=np.float32))
    assert again["widths"].tolist() == info["widths"].tolist()


def test_the_observation_describes_the_layer_the_next_action_is_for(env):
    observations, _, info = walk(env, [0.3] * 6)
    statistics = env.statistics.shape[1]
    for t in range(6):
        np.testing.assert_array_equal(observations[t][:statistics], env.statistics[t])
    walked = list(WALK_FEATURES)
    for t in range(1, 6):
        values = dict(zip(walked, observations[t][statistics:], strict=True))
        dense = env.budget.structure.widths
        assert values["last_action"] == pytest.approx(1 - info["widths"][t - 1] / dense[t - 1])
        now = np.concatenate([info["widths"][:t], dense[t:]])
        assert values["reduced"] == pytest.approx(1 - env.budget.structure.fraction("flops", now), abs=1e-6)
        low, high = env.budget.bounds(info["widths"][:t].tolist())
        assert (values["least"], values["most"]) == pytest.approx((1 - high / dense[t], 1 - low / dense[t]))


def test_the_reward_comes_last_and_is_the_sum_of_its_terms(env):
    env.weights = RewardWeights(accuracy=2.0, reconstruction=0.5, flops=0.25)
    _, total, info = walk(env, [0.1] * 6)
    evaluation = info["evaluation"]
    expected = {
        "accuracy": 2.0 * evaluation.accuracy / 100,
        "reconstruction": -0.5 * evaluation.reconstruction_loss,
        "flops": -0.25 * evaluation.flops,
    }
    assert info["reward_terms"] == pytest.approx(expected)
    assert total == pytest.approx(sum(expected.values()))
    assert env.evaluator.asked == 1


def test_stepping_on_after_the_end_is_refused(env):
    walk(env, [0.0] * 6)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(1, dtype=np.float32))


def test_statistics_need_a_row_a_layer(env):
    with pytest.raises(ValueError, match="one row a layer"):
        LayerSparsityEnv(env.budget, env.evaluator, env.statistics[:5])
