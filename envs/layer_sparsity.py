"""The environment: walk a network layer by layer and choose each layer's sparsity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..pruners.budget import Budget
from ..pruners.loss_model import LossModel, Prices
from .evaluator import Evaluation, Evaluator
from .observation import STATIC_FEATURES, WALK_FEATURES
from .reward import RewardWeights

Observation = NDArray[np.float32]

REACH = 2.0  # an action of 1 is a price e² times as high


class LayerSparsityEnv(gym.Env[Observation, NDArray[np.float32]]):
    """Walk a network layer by layer; every action is one layer's sparsity; the finished plan is evaluated and paid.

    ## Description
    An episode is one walk over the layers of a network, in the order of execution. At every step the agent says how
    much of one layer is removed. After the last layer the plan is complete: the evaluator prunes, repairs and runs
    the smaller network on the search images, and the agent is paid for what it kept. The idea is AMC's (He et al.,
    ECCV 2018); the budget, the action's meaning and the observation differ as described below.

    ## Action Space
    `Box(-1, 1, (1,))`. The action is a correction to what the loss model (`secateur.pruners.loss_model`) proposes:

    | action | sparsity of the layer |
    |---|---|
    | -1 | the least: a unit stays if it gains e⁻² of what the others' units must gain for their cost |
    | 0 | the proposed one: what is left of the budget is spent where the least loss is predicted |
    | +1 | the most: a unit stays only if it gains e² times as much |

    and so on in between, within what still lets the budget be met, and spent, by the other layers. Whatever the
    actions, the finished plan costs no more than the budget, counted with integer channels, and ends less than a
    channel of its last layer below it. Where a few channels more cost nothing (latency comes in stairs), the layer
    keeps them. All-zero actions give the base plan, the model's own.

    ## Observation Space
    `Box(0, 1, (features,))`, describing the layer the *next* action is for: first the layer's own statistics
    (`secateur.envs.observation.STATIC_FEATURES`), then where the walk stands (`WALK_FEATURES`). Nothing depends on
    the number of layers. The observation after the last action repeats the last layer's statistics.

    ## Starting State
    The first layer, nothing removed. `reset(options={"budget": 0.4})` walks on another budget from here on, a fraction
    of the dense cost; the observation holds it.

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
    * `losses` (`LossModel`): what layers are predicted to lose; none knows nothing, and proposes uniform plans.

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
        losses: LossModel | None = None,
    ):
        layers = len(budget.structure.layers)
        if statistics.ndim != 2 or len(statistics) != layers:
            raise ValueError(f"statistics of shape {statistics.shape} for {layers} layers: expected one row a layer")
        self.budget = budget
        self.evaluator = evaluator
        self.weights = weights or RewardWeights()
        self.losses = LossModel.even(budget) if losses is None else losses
        self._prices = Prices(self.losses, budget)
        self.statistics = statistics.astype(np.float32)
        features = statistics.shape[1] + len(WALK_FEATURES)
        self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.widths: list[int] = []
        self._position = 0.0
        self._bounds = (1, 1)

    @property
    def feature_names(self) -> list[str]:
        """What the observation's entries are, in order, where the statistics are those of a real network."""
        return [*STATIC_FEATURES, *WALK_FEATURES]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the first layer; `options` may name another budget."""
        super().reset(seed=seed)
        fraction = (options or {}).get("budget", self.budget.fraction)
        if fraction != self.budget.fraction:
            self.budget = replace(self.budget, fraction=fraction)
            self._prices = Prices(self.losses, self.budget)
        self.widths = []
        return self._observe(), {}

    def believe(self, losses: LossModel) -> None:
        """Let actions correct what another loss model proposes, from the next walk on."""
        self.losses = losses
        self._prices = Prices(losses, self.budget)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Prune the layer at hand; after the last one, evaluate the plan."""
        observation = self.walk(action)
        terminated = len(self.widths) == len(self.statistics)
        info: dict[str, Any] = {"widths": np.array(self.widths)}
        reward = 0.0
        if terminated:
            evaluation = self.evaluator.evaluate(info["widths"])
            terms = self.rewards(evaluation)
            reward = sum(terms.values())
            info |= {"evaluation": evaluation, "reward_terms": terms}
        return observation, reward, terminated, False, info

    def walk(self, action: NDArray[np.float32]) -> Observation:
        """A step without its pay: prune the layer at hand and look at the next; a finished plan is not evaluated.

        For who walks several episodes and has their plans judged together.
        """
        if len(self.widths) == len(self.statistics):
            raise RuntimeError("the walk is over: call reset() before the next step")
        self.widths.append(self._width(float(action[0])))
        return self._observe()

    def rewards(self, evaluation: Evaluation) -> dict[str, float]:
        """The weighted terms of the reward; their sum is what is paid."""
        return self.weights.terms(evaluation)

    def _width(self, action: float) -> int:
        """Map an action to the layer's width; see Action Space."""
        price = self._prices.dearer(self._position, REACH * float(np.clip(action, -1.0, 1.0)))
        low, high = self._bounds
        width = int(np.clip(round(float(self._prices.widths(price)[len(self.widths)])), low, high))
        return min(self.budget.widen(self.widths, width), high)

    def _observe(self) -> Observation:
        """What the agent sees next; also finds the price and the bounds of the layer at hand."""
        walked = len(self.widths)
        last = len(self.statistics)
        t = min(walked, last - 1)
        structure = self.budget.structure
        dense = structure.widths
        whole = self.budget.cost(dense)
        now = np.concatenate([self.widths, dense[walked:]]).astype(np.int64)
        spent = self.budget.cost(now)
        least = self.budget.cost(np.concatenate([self.widths, self.budget.least[walked:]]).astype(np.int64))
        if walked < last:
            self._position = self._prices.position(self.widths)
            self._bounds = self.budget.bounds(self.widths)
        low, high = self._bounds
        walk = {
            "reduced": (whole - spent) / whole,
            "rest": (spent - least) / whole,
            "budget": self.budget.fraction,
            "base": 1.0 - self._prices.widths(self._position)[t] / dense[t],
            "least": 1.0 - high / dense[t],
            "most": 1.0 - low / dense[t],
            "last_action": 1.0 - self.widths[-1] / dense[walked - 1] if walked else 0.0,
        }
        values = np.array([walk[name] for name in WALK_FEATURES], dtype=np.float32)
        return np.concatenate([self.statistics[t], np.clip(values, 0.0, 1.0)])
