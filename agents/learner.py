"""The agent: Stable-Baselines3's DDPG (TD3, SAC) walking the environment, one episode a candidate.

The loop is ours, so that several workers can evaluate at once and a run can be replayed; the learner is SB3's: its
policies, its n-step replay buffer, its `train`; the reward is the environment's. Returns are Monte-Carlo (n-step with
n = layers, γ = 1): every transition's target is what the finished plan was paid, and nothing is counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from torch import nn

from ..configs.schema import AgentConfig
from ..envs import Evaluation, LayerSparsityEnv
from .critic import with_penalty

ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {"ddpg": DDPG, "td3": TD3, "sac": SAC}

Policy = Callable[[int, NDArray[np.float32]], float]  # (layer, observation) → action, without noise

GREEDY = 25  # every so many episodes there is no noise


@dataclass(frozen=True)
class Episode:
    """One walk.

    Attributes:
        number: 0 for the first.
        budget: the fraction of the dense network's cost that was walked on.
        actions: (layers,) as carried out, in [-1, 1].
        kept: (layers,) units kept.
        evaluation: of the finished plan.
        terms: of the plan's quality, weighted.
        quality: their sum, by which plans are chosen.
        reward: the episode's return: the sum of what the environment paid.
        noise: standard deviation the actions were explored with.
        seconds: of the whole episode, its share of those that were walked together.
    """

    number: int
    budget: float
    actions: NDArray[np.float32]
    kept: NDArray[np.int64]
    evaluation: Evaluation
    terms: dict[str, float]
    quality: float
    reward: float
    noise: float
    seconds: float


@dataclass(frozen=True)
class _Walk:
    """A finished plan and how it came about: what was seen, with the end (layers + 1), and done (layers,)."""

    budget: float
    observations: list[NDArray[np.float32]]
    actions: NDArray[np.float32]
    kept: NDArray[np.int64]


class Learner:
    """Learns to allocate sparsity.

    Two things learn. The environment's *loss model*, which actions correct, is fitted anew to all evaluated plans
    before every episode: few numbers, learnt fast, good for any budget. The *policy* learns what such a sum over layers
    cannot say. Episode 0 is the model's own plan (all-zero actions); then `warmup` episodes explore round the model's
    plans, then the policy acts, with noise that decays linearly to `noise_end` and never dies. Every twenty-fifth
    episode acts without noise, and so does the last.

    With `budgets`, every episode walks on a budget of its own, drawn evenly from that range; those without noise, and
    the first, walk on the budget asked.

    What it learns from is what `LayerSparsityEnv.step` returns. The critic is told that an action costs the
    environment's `action_penalty` times its square, so that the policy goes no further from the loss model's plan than
    what it has seen pays for.

    With several workers it walks as many episodes with the policy as it stands, has their plans evaluated together, and
    then learns as much as it would have after each of them.

    An episode's randomness is drawn from (seed, episode) alone. So a run can be *replayed*: given the actions of
    its first episodes, `run` stores and learns exactly what it did, without asking what it would do, and goes on
    from there as if it had never stopped.

    Attributes:
        env: the environment, with its evaluator.
        config: the agent's section.
        workers: episodes that are walked, and evaluated, together.
        model: the SB3 algorithm.
        learnt: episodes that it has learnt from.
        seconds: time spent on choosing actions and on learning.
    """

    def __init__(self, env: LayerSparsityEnv, config: AgentConfig, seed: int, workers: int = 1):
        self.env = env
        self.config = config
        self.seed = seed
        self.workers = workers
        self.layers = len(env.statistics)
        self.learnt = 0
        self.seconds = 0.0
        self.asked = env.asked
        self.model = self._make_model()
        if config.budgets is not None:
            replace(self.asked, fraction=config.budgets[0])  # refuses what cannot be met

    def _make_model(self) -> OffPolicyAlgorithm:
        config = self.config
        algorithm = ALGORITHMS[config.algorithm]
        model = algorithm(
            with_penalty(algorithm.policy_aliases["MlpPolicy"], self.env.action_penalty),
            _SpacesOnly(self.env),
            learning_rate=config.learning_rate,
            buffer_size=max(2, config.episodes * self.layers),
            batch_size=config.batch_size,
            tau=config.tau,
            gamma=1.0,
            replay_buffer_class=NStepReplayBuffer,
            replay_buffer_kwargs={"n_steps": self.layers, "gamma": 1.0},
            policy_kwargs={"net_arch": list(config.hidden), "optimizer_kwargs": {"fused": True}},
            seed=self.seed,
            device="cpu",
        )
        model.set_logger(Logger(folder=None, output_formats=[]))
        for actor in (model.actor, getattr(model, "actor_target", None)):
            start_at_zero(actor)
        return model

    def run(self, past: Sequence[Sequence[float]] = (), budgets: Sequence[float | None] = ()) -> Iterator[Episode]:
        """Walk episode after episode, learning after each group; the caller logs, and may stop at any time.

        Args:
            past: actions (episodes, layers) of a run to be replayed first; their plans should be known to the
                evaluator. The last group may be there in part: the rest of it is walked as it would have been.
            budgets: that they were walked on, where every episode has its own; none is the one that would be drawn now.
        """
        for first in range(0, self.config.episodes, self.workers):
            yield from self._group(range(first, min(first + self.workers, self.config.episodes)), past, budgets)

    def policy_plan(self, fraction: float) -> NDArray[np.int64]:
        """(layers,) kept that the policy gives without noise, on a budget; nothing is evaluated."""
        return self._walk(0, fraction, 0.0, lambda _t, observation: self._greedy(observation)).kept

    def _group(self, numbers: range, past: Sequence[Sequence[float]], budgets: Sequence[float | None]) -> list[Episode]:
        """Episodes that are walked with the same policy, evaluated together, and learnt from in their order."""
        start = time.perf_counter()
        walks = [
            self._again(n, past[n], budgets[n] if n < len(budgets) else None) if n < len(past) else self._episode(n)
            for n in numbers
        ]
        evaluations = list(self.env.evaluator.evaluate_all([walk.kept for walk in walks]))
        began = time.perf_counter()
        rewards = []
        for walk, evaluation in zip(walks, evaluations, strict=True):
            paid = [self.env.penalty(float(action)) for action in walk.actions]
            paid[-1] += self.env.settle(walk.kept, evaluation, walk.budget)
            self._store(walk, paid)
            rewards.append(sum(paid))
        for number in numbers:
            self._learn(number)
        self.seconds += time.perf_counter() - began
        seconds = (time.perf_counter() - start) / len(numbers)
        episodes = []
        for number, walk, evaluation, reward in zip(numbers, walks, evaluations, rewards, strict=True):
            terms = self.env.weights.terms(evaluation)
            episodes.append(
                Episode(
                    number=number,
                    budget=walk.budget,
                    actions=walk.actions,
                    kept=walk.kept,
                    evaluation=evaluation,
                    terms=terms,
                    quality=sum(terms.values()),
                    reward=reward,
                    noise=self._noise(number),
                    seconds=seconds,
                )
            )
        return episodes

    def _again(self, number: int, actions: Sequence[float], budget: float | None) -> _Walk:
        if budget is None or number == 0 or self.config.budgets is None:
            budget = self._fraction(number)
        return self._walk(number, budget, 0.0, lambda t, _observation: float(np.float32(actions[t])))

    def _episode(self, number: int) -> _Walk:
        own = number > self.config.warmup
        policy: Policy = (lambda _t, observation: self._greedy(observation)) if own else (lambda _t, _observation: 0.0)
        return self._walk(number, self._fraction(number), self._noise(number), policy)

    def _walk(self, number: int, fraction: float, noise: float, policy: Policy) -> _Walk:
        rng = np.random.default_rng((self.seed, number))
        observation, _ = self.env.reset(options={"budget": fraction})
        observations, actions = [observation], np.zeros(self.layers, np.float32)
        for t in range(self.layers):
            began = time.perf_counter()
            jitter = float(rng.normal(0.0, noise)) if noise else 0.0
            actions[t] = np.clip(policy(t, observations[-1]) + jitter, -1.0, 1.0)
            self.seconds += time.perf_counter() - began
            observations.append(self.env.walk(actions[t : t + 1]))
        return _Walk(fraction, observations, actions, np.array(self.env.kept))

    def _greedy(self, observation: NDArray[np.float32]) -> float:
        action, _ = self.model.predict(observation, deterministic=True)
        return float(action[0])

    def _noise(self, number: int) -> float:
        warmup, last = self.config.warmup, self.config.episodes - 1
        if number == 0 or (number > warmup and (number % GREEDY == 0 or number == last)):
            return 0.0
        done = min(1.0, max(0, number - warmup) / max(1, self.config.episodes - warmup))
        return self.config.noise_start + done * (self.config.noise_end - self.config.noise_start)

    def _fraction(self, number: int) -> float:
        """The budget of an episode."""
        if self.config.budgets is None or self._noise(number) == 0.0:
            return self.asked.fraction
        low, high = self.config.budgets
        return low + (high - low) * float(np.random.default_rng((self.seed, number, 1)).random())

    def _store(self, walk: _Walk, rewards: Sequence[float]) -> None:
        buffer = self.model.replay_buffer
        assert buffer is not None
        for t, (action, reward) in enumerate(zip(walk.actions, rewards, strict=True)):
            buffer.add(
                walk.observations[t][None],
                walk.observations[t + 1][None],
                np.array([[action]]),
                np.array([reward]),
                np.array([t == self.layers - 1]),
                [{}],
            )

    def _learn(self, number: int) -> None:
        self.learnt = number + 1
        updates = self.config.updates * self.layers
        if number < self.config.warmup or updates == 0:
            return
        set_random_seed((self.seed * 1_000_003 + number) % 2**32)
        if number == self.config.warmup:
            updates *= max(1, self.config.warmup)  # catch up on what the warm-up brought
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


def start_at_zero(actor: Any) -> None:
    """Let an untrained policy be the loss model's own: its last layer gives next to nothing."""
    if actor is None:
        return
    last = actor.mu if isinstance(actor.mu, nn.Linear) else actor.mu[-2]  # SAC's is bare, the others' has a tanh behind
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.zero_()


class _SpacesOnly(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """What SB3 needs to see of the environment when it is not the one who steps it."""

    def __init__(self, env: gym.Env[Any, Any]):
        self.observation_space = env.observation_space
        self.action_space = env.action_space
