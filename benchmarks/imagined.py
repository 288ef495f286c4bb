"""A policy learnt by DDPG, TD3 or SAC across networks, in imagined episodes: the log stands in for the evaluator.

An episode draws a network and a budget of the population and walks it as `LayerSparsityEnv` does. Its plan's loss is
what the loss model predicts whose factors were fitted to that network's log. The reward is the part of the base plan's
loss that is won back, so that networks and budgets are on one scale. What is seen of a layer are the features that
`secateur.agents.features` has, squashed into the observation's range, and where the walk stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from experience import Group
from numpy.typing import NDArray
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

from secateur.agents.critic import with_penalty
from secateur.agents.learner import ALGORITHMS, start_at_zero
from secateur.envs import Evaluation, LayerSparsityEnv, RewardWeights
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel
from secateur.pruners.structure import Floats, Kept

PENALTY = 0.1  # of an action's square: imagined episodes are many, and hold no noise that it must guard from
NOISE = 0.15
MEMORY = 100_000  # transitions

Observation = NDArray[np.float32]


class Imagination:
    """Evaluates by a loss model: what a plan loses is known without a network."""

    def __init__(self, losses: LossModel):
        self.losses = losses
        self.dense = Evaluation(100.0, 0.0, 1.0, 1.0)

    def evaluate(self, kept: NDArray[np.int64]) -> Evaluation:
        fractions = self.losses.structure.fractions(kept)
        return Evaluation(100.0, float(self.losses.predict(kept)), fractions["flops"], fractions["params"])

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        return map(self.evaluate, plans)


class Population(gym.Env[Observation, NDArray[np.float32]]):
    """Every episode is on one of several environments, drawn evenly."""

    metadata = {"render_modes": []}  # noqa: RUF012 – gymnasium's own convention

    def __init__(self, envs: Sequence[LayerSparsityEnv]):
        self.envs = envs
        self.now = envs[0]
        self.observation_space, self.action_space = self.now.observation_space, self.now.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.now = self.envs[int(self.np_random.integers(len(self.envs)))]
        return self.now.reset()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return self.now.step(action)


def squashed(features: Floats, centre: Floats, scale: Floats) -> NDArray[np.float32]:
    """(layers, features) in [0, 1]."""
    return (0.5 + 0.5 * np.tanh((features - centre) / scale / 2.0)).astype(np.float32)


class Walker:
    """A policy that was learnt on some networks and plans others.

    Args:
        groups: to learn from.
        episodes: that are imagined.
        seed: of all that is drawn.
        algorithm: that learns: ddpg, td3 or sac.
    """

    def __init__(self, groups: Sequence[Group], episodes: int, seed: int, algorithm: str = "ddpg"):
        stacked = np.concatenate([group.features for group in groups])
        self.centre, self.scale = stacked.mean(axis=0), np.maximum(stacked.std(axis=0), 1e-3)
        envs = []
        for name in dict.fromkeys(group.network for group in groups):
            mine = [group for group in groups if group.network == name]
            plans, distances = (np.concatenate([getattr(g, key) for g in mine]) for key in ("plans", "distances"))
            imagination = Imagination(mine[0].losses.fitted(plans, distances))
            envs += [self._env(g.budget, g.losses, g.features, imagination) for g in mine]
        population = Population(envs)
        steps = round(episodes * float(np.mean([len(env.statistics) for env in envs])))
        chosen = ALGORITHMS[algorithm]
        self.model = chosen(
            with_penalty(chosen.policy_aliases["MlpPolicy"], PENALTY),
            population,
            learning_rate=1e-3,
            buffer_size=MEMORY,
            learning_starts=500,
            batch_size=256,
            tau=0.01,
            gamma=1.0,
            train_freq=8,
            gradient_steps=4,
            action_noise=NormalActionNoise(np.zeros(1), np.full(1, NOISE)),
            replay_buffer_class=NStepReplayBuffer,
            replay_buffer_kwargs={"n_steps": 64, "gamma": 1.0},
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        )
        for actor in (self.model.actor, getattr(self.model, "actor_target", None)):
            start_at_zero(actor)
        self.model.learn(steps)

    def _env(self, budget: Budget, losses: LossModel, features: Floats, evaluator: Imagination) -> LayerSparsityEnv:
        return LayerSparsityEnv(
            budget,
            evaluator,
            squashed(features, self.centre, self.scale),
            RewardWeights(),
            losses,
            action_penalty=PENALTY,
            adapt=False,
        )

    def plan(self, budget: Budget, losses: LossModel, features: Floats) -> Kept:
        """(layers,) kept of a network, by actions without noise; nothing is evaluated."""
        env = self._env(budget, losses, features, Imagination(losses))
        observation, _ = env.reset()
        for _ in budget.structure.layers:
            action, _ = self.model.predict(observation, deterministic=True)
            observation = env.walk(action)
        return np.array(env.kept, dtype=np.int64)
