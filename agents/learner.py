"""The agent: Stable-Baselines3's DDPG (TD3, SAC) walking the environment, one episode a candidate.

The loop is ours, the learner is SB3's: its policies, its n-step replay buffer, its `train`. That puts the whole
search in one place: act, step, store, learn, log. Returns are Monte-Carlo (n-step with n = layers, γ = 1, the reward
at the last step): every transition's target is what the finished plan was paid, and nothing is counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from ..configs.schema import AgentConfig
from ..envs import Evaluation, LayerSparsityEnv

ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"ddpg": DDPG, "td3": TD3, "sac": SAC}


@dataclass(frozen=True)
class Episode:
    """One walk.

    Attributes:
        number: 0 for the first.
        actions: (layers,) as carried out, in [-1, 1].
        widths: (layers,) units kept.
        evaluation: of the finished plan.
        terms: of the reward, weighted.
        reward: their sum.
        noise: standard deviation the actions were explored with.
        seconds: of the whole episode.
    """

    number: int
    actions: NDArray[np.float32]
    widths: NDArray[np.int64]
    evaluation: Evaluation
    terms: dict[str, float]
    reward: float
    noise: float
    seconds: float


class Learner:
    """Learns to allocate sparsity.

    Episode 0 is the base plan (all-zero actions); what it is paid is the baseline that is taken
    from every reward before it is stored, a constant that moves no optimum and keeps returns near zero. The
    demonstrations follow: plans that somebody else made, walked as if the agent had. Then `warmup` episodes explore
    round the base plan, then the policy acts, with noise that decays linearly to `noise_end` and never dies. Every
    twenty-fifth episode acts without noise.

    An episode's randomness is drawn from (seed, episode) alone. So a run can be *replayed*: given the actions of
    its first episodes, `run` stores and learns exactly what it did, without asking what it would do, and goes on
    from there as if it had never stopped.

    Attributes:
        env: the environment, with its evaluator.
        config: the agent's section.
        demonstrations: (layers,) widths of each.
        warmup: episodes before the policy acts.
        model: the SB3 algorithm.
        learnt: episodes that it has learnt from; `run` goes on behind them.
        seconds: time spent on choosing actions and on learning.
    """

    def __init__(
        self,
        env: LayerSparsityEnv,
        config: AgentConfig,
        seed: int,
        demonstrations: Sequence[NDArray[np.int64]] = (),
    ):
        self.env = env
        self.config = config
        self.seed = seed
        self.demonstrations = demonstrations
        self.warmup = config.warmup + len(demonstrations)
        self.layers = len(env.statistics)
        self.learnt = 0
        self.seconds = 0.0
        self.baseline = 0.0
        self.model = self._make_model()

    def _make_model(self) -> OffPolicyAlgorithm:
        config = self.config
        model = ALGORITHMS[config.algorithm](
            "MlpPolicy",
            _SpacesOnly(self.env),
            learning_rate=config.learning_rate,
            buffer_size=max(2, config.episodes * self.layers),
            batch_size=config.batch_size,
            tau=config.tau,
            gamma=1.0,
            replay_buffer_class=NStepReplayBuffer,
            replay_buffer_kwargs={"n_steps": self.layers, "gamma": 1.0},
            policy_kwargs={"net_arch": list(config.hidden)},
            seed=self.seed,
            device="cpu",
        )
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    def run(self, past: Sequence[Sequence[float]] = ()) -> Iterator[Episode]:
        """Walk episode after episode, learning after each; the caller logs, and may stop at any time.

        Args:
            past: actions (episodes, layers) of a run to be replayed first; their plans should be known to the
                evaluator.
        """
        for number in range(self.learnt, self.config.episodes):
            actions = np.asarray(past[number], dtype=np.float32) if number < len(past) else None
            yield self._episode(number, actions)

    def policy_actions(self) -> NDArray[np.float32]:
        """(layers,) what the policy does without noise, on a walk of its own that is not evaluated."""
        observation, _ = self.env.reset()
        actions = np.zeros(self.layers, dtype=np.float32)
        for t in range(self.layers):
            actions[t] = self._greedy(observation)
            if t + 1 < self.layers:
                observation, *_ = self.env.step(actions[t : t + 1])
        return actions

    def _episode(self, number: int, past: NDArray[np.float32] | None) -> Episode:
        start = time.perf_counter()
        rng = np.random.default_rng((self.seed, number))
        noise = self._noise(number)
        observation, _ = self.env.reset()
        walk: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]] = []
        info: dict[str, Any] = {}
        reward = 0.0
        for t in range(self.layers):
            began = time.perf_counter()
            jitter = float(rng.normal(0.0, noise)) if noise else 0.0
            action = past[t : t + 1] if past is not None else self._act(number, t, observation, jitter)
            self.seconds += time.perf_counter() - began
            following, reward, _, _, info = self.env.step(action)
            walk.append((observation, action, following))
            observation = following
        began = time.perf_counter()
        if number == 0:
            self.baseline = reward
        self._store(walk, reward - self.baseline)
        self._learn(number)
        self.seconds += time.perf_counter() - began
        return Episode(
            number=number,
            actions=np.concatenate([action for _, action, _ in walk]),
            widths=info["widths"],
            evaluation=info["evaluation"],
            terms=info["reward_terms"],
            reward=reward,
            noise=noise,
            seconds=time.perf_counter() - start,
        )

    def _noise(self, number: int) -> float:
        if number <= len(self.demonstrations) or (number > self.warmup and number % 25 == 0):
            return 0.0
        done = min(1.0, max(0, number - self.warmup) / max(1, self.config.episodes - self.warmup))
        return self.config.noise_start + done * (self.config.noise_end - self.config.noise_start)

    def _act(self, number: int, t: int, observation: NDArray[np.float32], jitter: float) -> NDArray[np.float32]:
        if 0 < number <= len(self.demonstrations):
            wish = self.env.action_for(int(self.demonstrations[number - 1][t]))
        else:
            wish = 0.0 if number <= self.warmup else self._greedy(observation)
        return np.clip(np.array([wish + jitter], dtype=np.float32), -1.0, 1.0)

    def _greedy(self, observation: NDArray[np.float32]) -> float:
        action, _ = self.model.predict(observation, deterministic=True)
        return float(action[0])

    def _store(self, walk: list[tuple[Any, Any, Any]], reward: float) -> None:
        buffer = self.model.replay_buffer
        assert buffer is not None
        for t, (observation, action, following) in enumerate(walk):
            done = t == len(walk) - 1
            buffer.add(
                observation[None],
                following[None],
                action[None],
                np.array([reward if done else 0.0]),
                np.array([done]),
                [{}],
            )

    def _learn(self, number: int) -> None:
        self.learnt = number + 1
        updates = self.config.updates * self.layers
        if number < self.warmup or updates == 0:
            return
        set_random_seed((self.seed * 1_000_003 + number) % 2**32)
        if number == self.warmup:
            updates *= max(1, self.warmup)  # catch up on what the warm-up brought
        try:
            self.model.train(gradient_steps=updates, batch_size=self.config.batch_size)
        finally:  # where there is a NaN, SAC fails with an error of its own
            self._check()

    def _check(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            raise RuntimeError(
                f"the agent diverged after {self.learnt} episodes (its networks hold a NaN); the plan found so far is "
                f"kept: go on with a learning rate below agent.learning_rate={self.config.learning_rate:g}"
            )


class _SpacesOnly(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """What SB3 needs to see of the environment when it is not the one who steps it."""

    def __init__(self, env: gym.Env[Any, Any]):
        self.observation_space = env.observation_space
        self.action_space = env.action_space
