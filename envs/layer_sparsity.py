"""The environment: walk a network layer by layer and choose each layer's sparsity."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..pruners.budget import Budget
from .evaluator import Evaluation, Evaluator
from .observation import STATIC_FEATURES, WALK_FEATURES
from .reward import RewardWeights

Observation = NDArray[np.float32]


class LayerSparsityEnv(gym.Env[Observation, NDArray[np.float32]]):
    """Walk a network layer by layer; every action is one layer's sparsity; the finished plan is evaluated and paid.

    ## Description
    An episode is one walk over the layers of a network, in the order of execution. At every step the agent says how
    much of one layer is removed. After the last layer the plan is complete: the evaluator prunes, repairs and runs
    the smaller network on the search images, and the agent is paid for what it kept. The idea is AMC's (He et al.,
    ECCV 2018); the budget, the action's meaning and the observation differ as described below.

    ## Action Space
    `Box(-1, 1, (1,))`. The action is a correction to a base plan:

    | action | sparsity of the layer |
    |---|---|
    | -1 | the least that still lets the other layers meet the budget |
    | 0 | the base plan's; what the layers before took too much or left over is shared in its proportions |
    | +1 | the most that still lets the budget be spent, at most `max_sparsity` |

    and linear in between. Every action is feasible, so nothing is clipped and the action a replay buffer stores is
    the one that was carried out, up to the rounding to whole channels. Whatever the actions, the finished plan costs
    no more than the budget, counted with integer channels, and ends less than a channel of its last layer below it.
    Where a few channels more cost nothing (latency comes in stairs), the layer keeps them.
    All-zero actions give the base plan, up to rounding.

    ## Observation Space
    `Box(0, 1, (features,))`, describing the layer the *next* action is for: first the layer's own statistics
    (`secateur.envs.observation.STATIC_FEATURES`), then where the walk stands (`WALK_FEATURES`). Nothing depends on
    the number of layers. The observation after the last action repeats the last layer's statistics.

    ## Starting State
    The first layer, nothing removed.

    ## Reward
    0 until the last step; then Σ weight · term over

    | term | is |
    |---|---|
    | accuracy | top-1 on the search images as a fraction, in [0, 1] |
    | reconstruction | − mean squared logit distance from the dense network over the variance of its logits, ≥ −10 |
    | flops | − fraction of the FLOPs kept |

    `info["reward_terms"]` holds the weighted terms, `info["evaluation"]` the figures, `info["widths"]` the plan.

    ## Episode End
    Terminated after the last layer; never truncated.

    ## Arguments
    * `budget` (`secateur.pruners.budget.Budget`): the layers and what a plan may cost; a budget that cannot be met is
      refused when it is made.
    * `evaluator` (`Evaluator`): judges the finished plan; a real network's or a toy.
    * `statistics`: (layers, features) array in [0, 1], of `layer_statistics` for a real network.
    * `weights` (`RewardWeights`): of the reward's terms.
    * `base`: (layers,) widths of the base plan; none is the uniform one.

    ## Version History
    * v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 – gymnasium's own convention

    def __init__(
        self,
        budget: Budget,
        evaluator: Evaluator,
        statistics: NDArray[np.float32],
        weights: RewardWeights | None = None,
        base: NDArray[np.int64] | None = None,
    ):
        layers = len(budget.structure.layers)
        if statistics.ndim != 2 or len(statistics) != layers:
            raise ValueError(f"statistics of shape {statistics.shape} for {layers} layers: expected one row a layer")
        self.budget = budget
        self.evaluator = evaluator
        self.weights = weights or RewardWeights()
        self.base = budget.structure.check_widths(budget.structure.widths if base is None else base)
        self.statistics = statistics.astype(np.float32)
        features = statistics.shape[1] + len(WALK_FEATURES)
        self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.widths: list[int] = []

    @property
    def feature_names(self) -> list[str]:
        """What the observation's entries are, in order, where the statistics are those of a real network."""
        return [*STATIC_FEATURES, *WALK_FEATURES]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the first layer."""
        super().reset(seed=seed)
        self.widths = []
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Prune the layer at hand; after the last one, evaluate the plan."""
        if len(self.widths) == len(self.statistics):
            raise RuntimeError("the walk is over: call reset() before the next step")
        self.widths.append(self._width(float(action[0])))
        terminated = len(self.widths) == len(self.statistics)
        info: dict[str, Any] = {"widths": np.array(self.widths)}
        reward = 0.0
        if terminated:
            evaluation = self.evaluator.evaluate(info["widths"])
            terms = self.rewards(evaluation)
            reward = sum(terms.values())
            info |= {"evaluation": evaluation, "reward_terms": terms}
        return self._observe(), reward, terminated, False, info

    def rewards(self, evaluation: Evaluation) -> dict[str, float]:
        """The weighted terms of the reward; their sum is what is paid."""
        return self.weights.terms(evaluation)

    def action_for(self, width: int) -> float:
        """The action that gives the layer at hand this width, or the nearest it may take."""
        dense, least, base, most = self._range()
        sparsity = float(np.clip(1.0 - width / dense, least, most))
        reach = most - base if sparsity > base else base - least
        return (sparsity - base) / reach if reach > 0.0 else 0.0

    def _width(self, action: float) -> int:
        """Map an action to the layer's width; see Action Space."""
        action = float(np.clip(action, -1.0, 1.0))
        dense, least, base, most = self._range()
        sparsity = base + action * (most - base if action > 0.0 else base - least)
        low, high = round((1.0 - most) * dense), round((1.0 - least) * dense)
        width = int(np.clip(round((1.0 - sparsity) * dense), low, high))
        return min(self.budget.widen(self.widths, width), high)

    def _range(self) -> tuple[int, float, float, float]:
        """The layer's dense width, and the sparsities that -1, 0 and +1 mean."""
        dense = int(self.budget.structure.widths[len(self.widths)])
        low, high = self.budget.bounds(self.widths)
        least, most = 1.0 - high / dense, 1.0 - low / dense
        return dense, least, float(np.clip(self.budget.share(self.widths, self.base), least, most)), most

    def _observe(self) -> Observation:
        walked = len(self.widths)
        last = len(self.statistics)
        t = min(walked, last - 1)
        structure = self.budget.structure
        dense = structure.widths
        whole = self.budget.cost(dense)
        now = np.concatenate([self.widths, dense[walked:]]).astype(np.int64)
        spent = self.budget.cost(now)
        least = self.budget.cost(np.concatenate([self.widths, self.budget.least[walked:]]).astype(np.int64))
        low, high = self.budget.bounds(self.widths) if walked < last else (self.widths[-1], self.widths[-1])
        walk = {
            "reduced": (whole - spent) / whole,
            "rest": (spent - least) / whole,
            "budget": self.budget.fraction,
            "base": self.budget.share(self.widths, self.base) if walked < last else 0.0,
            "least": 1.0 - high / dense[t],
            "most": 1.0 - low / dense[t],
            "last_action": 1.0 - self.widths[-1] / dense[walked - 1] if walked else 0.0,
        }
        values = np.array([walk[name] for name in WALK_FEATURES], dtype=np.float32)
        return np.concatenate([self.statistics[t], np.clip(values, 0.0, 1.0)])
