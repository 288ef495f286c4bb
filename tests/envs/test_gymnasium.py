"""From outside: made by its name, and learnt in by an agent that knows nothing of secateur."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import DDPG
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import secateur
import zoo
from secateur.agents.learner import ALGORITHMS
from secateur.configs import load_config
from secateur.envs import Evaluation, LayerSparsityEnv
from secateur.pruners.budget import Budget

NAME = "secateur/LayerSparsity-v0"


@pytest.fixture(scope="module")
def session() -> secateur.Session:
    model = zoo.make("digits")
    images = secateur.Images(calibration=zoo.batches("digits"), search=zoo.batches("digits", (20, 20), seed=9))
    return secateur.Session("digits", model=model, images=images, overrides=["budget.flops=0.5"])


def episode(env: gymnasium.Env[Any, Any], actions: list[float]) -> list[float]:
    env.reset(seed=0)
    return [float(env.step(np.array([action], np.float32))[1]) for action in actions]


@pytest.mark.parametrize("order", ["gymnasium, secateur", "secateur, gymnasium"])
def test_importing_the_package_makes_the_name_known_and_imports_no_torch(order: str) -> None:
    script = f"import sys, {order}; print(gymnasium.spec({NAME!r}).entry_point, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "secateur:make_env False\n", found.stderr


def test_a_command_waits_for_no_library_that_it_may_not_need() -> None:
    """Every command, every worker process: torchvision takes a second and a half to import, scikit-learn one."""
    script = "import sys, secateur.commands.session, secateur.envs.workers.processes; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torchvision", "sklearn", "matplotlib", "stable_baselines3"} & set(found)


def test_made_by_its_name_it_is_the_sessions_own(session: secateur.Session) -> None:
    env = gymnasium.make(NAME, session=session)
    assert isinstance(env.unwrapped, LayerSparsityEnv)
    assert env.spec is not None
    assert env.spec.id == NAME == secateur.ENV_ID
    assert env.unwrapped.asked == session.budget
    assert env.unwrapped.action_penalty == session.config.agent.action_penalty == 2.0
    actions = [0.3, -0.2, 0.9, 0.0, -1.0, 0.5]
    rewards = episode(env, actions)
    assert rewards == episode(secateur.make_env(session), actions)
    assert rewards[-1] != 0.0
    assert env.unwrapped is not gymnasium.make(NAME, session=session).unwrapped


@pytest.mark.parametrize("check", [check_env, check_env_sb3])
def test_checkers_have_nothing_to_say_of_a_real_network(check: Any, session: secateur.Session) -> None:
    env = gymnasium.make(NAME, session=session)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the dense network is no better than guessing")  # a network of random weights
        check(env.unwrapped)


def test_an_agent_learns_in_what_a_config_names() -> None:
    """The whole program of someone who has an agent: nothing is imported from deep inside."""
    config = load_config("digits", ["network.pretrain.epochs=1", "repair.search.kind=gram"])
    env = gymnasium.make(NAME, config=config)
    agent = DDPG("MlpPolicy", env, gamma=1.0, learning_starts=12, batch_size=8, policy_kwargs={"net_arch": [8]}, seed=0)
    before = [parameter.clone() for parameter in agent.actor.parameters()]
    agent.learn(5 * len(env.unwrapped.statistics))
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.actor.parameters(), strict=True))
    assert 5 <= len(env.unwrapped.evaluated) <= 6  # and the base plan
    assert env.unwrapped.asked.cost(env.unwrapped.best) <= env.unwrapped.asked.limit


class Logged(zoo.Target):
    """It remembers what it was asked, and what it answered."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.log: list[tuple[tuple[int, ...], Evaluation]] = []

    def evaluate(self, kept: np.ndarray) -> Evaluation:
        found = super().evaluate(kept)
        self.log.append((tuple(kept.tolist()), found))
        return found


@pytest.mark.parametrize(
    "algorithm",
    ["ddpg", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(ALGORITHMS) if name != "ddpg")],
)
def test_what_an_agent_of_ones_own_finds_is_no_worse_than_the_base_plan(algorithm: str) -> None:
    structure = zoo.structure("digits")
    budget = Budget(structure, "flops", 0.5)
    odd = np.arange(6) % 2
    optimum = budget.fill(np.where(odd, 1.0, 0.2) * structure.units)
    statistics = np.stack([np.linspace(0, 1, 6), structure.units / 64, odd], 1).astype(np.float32)
    env = LayerSparsityEnv(budget, Logged(structure, optimum), statistics, action_penalty=2.0)
    agent = ALGORITHMS[algorithm]("MlpPolicy", env, gamma=1.0, learning_starts=30, seed=0)
    agent.learn(20 * 6)

    log = env.evaluator.log
    assert len(log) == 21  # the base plan and an episode's each
    qualities = [env.weights.quality(evaluation) for _, evaluation in log]
    base = dict(log)[tuple(env.base_plan(0.5).tolist())]
    best = env.weights.quality(env.evaluated[tuple(env.best.tolist())])
    assert best == max(qualities)
    assert tuple(env.best.tolist()) == log[int(np.argmax(qualities))][0]
    assert best > env.weights.quality(base)
    assert all(budget.cost(kept) <= budget.limit for kept, _ in log)

    buffer = agent.replay_buffer  # what it has learnt from is what it found, on the scale of gains
    assert buffer.rewards.shape[0] >= 120
    returns = buffer.rewards[:120, 0].reshape(20, 6).sum(axis=1) + 2.0 * np.square(
        buffer.actions[:120, 0, 0].reshape(20, 6)
    ).sum(axis=1)
    walked = [quality for (kept, evaluation), quality in zip(log, qualities, strict=True) if evaluation is not base]
    gains = 1.0 - (1.0 - np.array(walked)) / (1.0 - env.weights.quality(base))
    np.testing.assert_allclose(returns, gains.clip(min=-1.5), atol=1e-5)
