"""The environment: walk a network layer by layer and choose each layer's sparsity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..pruners.budget import Budget
from ..pruners.loss_model import Lagrangian, LossModel
from ..pruners.structure import Kept
from .evaluator import Evaluation, Evaluator
from .observation import STATIC_FEATURES, WALK_FEATURES
from .reward import LEAST_LOSS, Base, RewardWeights

Observation = NDArray[np.float32]

REACH = 2.0  # an action of 1 is a multiplier e² times as high


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

    and so on in between, within what still lets the budget be met, and spent, by the other layers. Of the choices about
    what is wished for the nearest is taken, unless the other one leaves the layers to come so much more that the plan
    is predicted to lose less (`secateur.pruners.loss_model.Lagrangian.choose`). Whatever the
    actions, the finished plan costs no more than the budget, counted with whole units, and ends less than a
    step of its last layer below it. Where a few units more cost nothing (latency comes in stairs), the layer
    keeps them. All-zero actions give the base plan, the model's own.

    ## Observation Space
    `Box(0, 1, (features,))`, describing the layer the *next* action is for: first the layer's own statistics
    (`secateur.envs.observation.STATIC_FEATURES`), then where the walk stands (`WALK_FEATURES`). Nothing depends on
    the number of layers. The observation after the last action repeats the last layer's statistics.

    ## Starting State
    The first layer, nothing removed. `reset(options={"budget": 0.4})` walks on another budget from here on, a fraction
    of the dense cost; the observation holds it. Of several budgets (`Budget.besides`) that is the first; the others
    stay, and every plan meets all of them.

    ## Reward
    What the agent learns from. Every step costs `action_penalty` · a²: a correction that brings nothing fades. The last
    step adds the plan's *gain*: the part of the base plan's loss that it wins back,

    gain = (lost(base) − lost(plan) + flops weight · (FLOPs of base − FLOPs of plan)) / lost(base) ≥ −1.5,

    0 for the base plan, 1 for a plan that loses nothing, whatever the network and the budget (a base plan that loses
    next to nothing itself counts as if it lost a thousandth). A plan's loss is what its
    *quality* lacks to the dense network's, and quality is Σ weight · term over

    | term | is |
    |---|---|
    | accuracy | the objective's measure on the search images (top-1) as a fraction, in [0, 1] |
    | reconstruction | − mean squared distance of the outputs from the dense ones over their variance, ≥ −10 |
    | flops | − fraction of the FLOPs kept |

    The base plan is evaluated once; on another budget than the first, its loss is scaled by what the loss model
    predicts. Returns need no discount: γ = 1.

    `info["reward_terms"]` holds what the step's reward is the sum of: `gain` and `action_penalty`. After the last step
    `info["terms"]` holds the weighted terms of the quality, `info["quality"]` their sum, by which plans are chosen,
    `info["evaluation"]` the figures. `info["kept"]` holds the plan so far. `env.best` is the best plan evaluated on the
    first budget.

    ## Episode End
    Terminated after the last layer; never truncated.

    ## Arguments
    * `budget` (`secateur.pruners.budget.Budget`): the layers and what a plan may cost; a budget that cannot be met is
      refused when it is made.
    * `evaluator` (`Evaluator`): evaluates the finished plan; a real network's or a toy.
    * `statistics`: (layers, features) array in [0, 1], of `layer_statistics` for a real network.
    * `weights` (`RewardWeights`): of the quality's terms.
    * `loss_model` (`LossModel`): what layers are predicted to lose; none knows nothing, and proposes uniform plans.
    * `action_penalty`: of an action, times its square.
    * `adapt`: whether the loss model is fitted anew, before every episode, to all plans evaluated.

    `gymnasium.make("secateur/LayerSparsity-v0", config="digits")` makes all of them from a config, or, with `session`,
    from a `secateur.Session`; `import secateur` makes the name known.

    ## Version History
    * v0: first version. Since 0.2 the reward is the gain and the penalty, no longer the quality itself.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 – gymnasium's own convention

    def __init__(
        self,
        budget: Budget,
        evaluator: Evaluator,
        statistics: NDArray[np.float32],
        weights: RewardWeights | None = None,
        loss_model: LossModel | None = None,
        *,
        action_penalty: float = 0.0,
        adapt: bool = True,
    ):
        layers = len(budget.structure.layers)
        if statistics.ndim != 2 or len(statistics) != layers:
            raise ValueError(f"statistics of shape {statistics.shape} for {layers} layers: expected one row a layer")
        self.asked = budget
        self.budget = budget
        self.evaluator = evaluator
        self.weights = weights or RewardWeights()
        self.action_penalty = action_penalty
        self.adapt = adapt
        self.predicted = LossModel.even(budget) if loss_model is None else loss_model
        self.loss_model = self.predicted
        self.statistics = statistics.astype(np.float32)
        self.evaluated: dict[tuple[int, ...], Evaluation] = {}
        self.best: Kept | None = None
        features = statistics.shape[1] + len(WALK_FEATURES)
        self.observation_space = spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.kept: list[int] = []
        self._lagrangian = Lagrangian(self.loss_model, budget)
        self._bases: dict[float, Base] = {}
        self._stale = False
        self._position = 0.0
        self._bounds = (1, 1)

    @property
    def feature_names(self) -> list[str]:
        """What the observation's entries are, in order, where the statistics are those of a real network."""
        return [*STATIC_FEATURES, *WALK_FEATURES]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Back to the first layer; `options` may name another budget. What was evaluated since is learnt from."""
        super().reset(seed=seed)
        fraction = (options or {}).get("budget", self.budget.fraction)
        if fraction != self.budget.fraction:
            self.budget = replace(self.budget, fraction=fraction)
            self._lagrangian = Lagrangian(self.loss_model, self.budget)
        self.refit()
        self.kept = []
        return self._observe(), {}

    def refit(self) -> None:
        """Fit the loss model to all plans evaluated, if it adapts and there are new ones; `reset` begins with it."""
        if self.adapt and self._stale:
            distances = [evaluation.reconstruction_loss for evaluation in self.evaluated.values()]
            self.set_loss_model(self.predicted.fitted([*self.evaluated], distances))

    def set_loss_model(self, loss_model: LossModel) -> None:
        """Let actions correct what another loss model proposes, from the next walk on."""
        self.loss_model = loss_model
        self._lagrangian = Lagrangian(loss_model, self.budget)
        self._stale = False

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Compress the layer at hand; after the last one, evaluate the plan."""
        observation = self.walk(action)
        terms = {"action_penalty": self.penalty(float(action[0]))}
        info: dict[str, Any] = {"kept": np.array(self.kept), "reward_terms": terms}
        terminated = len(self.kept) == len(self.statistics)
        if terminated:
            evaluation = self.evaluator.evaluate(info["kept"])
            terms["gain"] = self.settle(info["kept"], evaluation, self.budget.fraction)
            parts = self.weights.terms(evaluation)
            info |= {"evaluation": evaluation, "terms": parts, "quality": sum(parts.values())}
        return observation, sum(terms.values()), terminated, False, info

    def walk(self, action: NDArray[np.float32]) -> Observation:
        """A step without its reward: compress the layer at hand and look at the next; a finished plan is not evaluated.

        For who walks several episodes and has their plans evaluated together: `penalty` of every action and `settle`
        of the finished plan are the reward.
        """
        if len(self.kept) == len(self.statistics):
            raise RuntimeError("the walk is over: call reset() before the next step")
        self.kept.append(self._choice(float(action[0])))
        return self._observe()

    def penalty(self, action: float) -> float:
        """What an action costs, ≤ 0; one outside the space as much as where it is clipped to."""
        return -self.action_penalty * float(np.clip(action, -1.0, 1.0)) ** 2

    def settle(self, kept: Kept, evaluation: Evaluation, fraction: float) -> float:
        """The gain of a finished plan; from the next `reset` on, the loss model knows it, too.

        Args:
            kept: (layers,) the plan.
            evaluation: of it.
            fraction: the budget that it was walked on.
        """
        self._record(kept, evaluation, fraction)
        return self._base(fraction).gain(self.weights, evaluation, self.evaluator.dense)

    def _record(self, kept: Kept, evaluation: Evaluation, fraction: float) -> None:
        """Remember what a plan is worth."""
        key = _key(kept)
        self._stale |= key not in self.evaluated
        self.evaluated.setdefault(key, evaluation)
        if fraction == self.asked.fraction and (
            self.best is None
            or self.weights.quality(evaluation) > self.weights.quality(self.evaluated[_key(self.best)])
        ):
            self.best = np.array(kept, dtype=np.int64)

    def base_plan(self, fraction: float) -> Kept:
        """(layers,) what all-zero actions give on a budget before anything was learnt."""
        budget = replace(self.asked, fraction=fraction)
        lagrangian = Lagrangian(self.predicted, budget)
        kept: list[int] = []
        for _ in budget.structure.layers:
            kept.append(lagrangian.choose(kept, lagrangian.position(kept), budget.bounds_at(kept)))
        return np.array(kept, dtype=np.int64)

    def _base(self, fraction: float) -> Base:
        if fraction not in self._bases:
            kept = self.base_plan(fraction)
            flops = self.asked.structure.fraction("flops", kept)
            if fraction == self.asked.fraction:
                if _key(kept) not in self.evaluated:
                    self._record(kept, self.evaluator.evaluate(kept), fraction)
                lost = self.weights.lost(self.evaluated[_key(kept)], self.evaluator.dense)
            else:
                known = self._base(self.asked.fraction).lost
                here, there = (
                    float(self.predicted.predict(plan)) for plan in (self.base_plan(self.asked.fraction), kept)
                )
                lost = max(LEAST_LOSS, known * there / here if here else there)
            self._bases[fraction] = Base(flops, lost)
        return self._bases[fraction]

    def _choice(self, action: float) -> int:
        """Map an action to how many of the layer's units are kept; see Action Space."""
        exponent = REACH * float(np.clip(action, -1.0, 1.0))
        return self._lagrangian.choose(self.kept, self._position, self._bounds, exponent)

    def _observe(self) -> Observation:
        """What the agent sees next; also finds the multiplier and the bounds of the layer at hand."""
        walked = len(self.kept)
        last = len(self.statistics)
        t = min(walked, last - 1)
        structure = self.budget.structure
        dense = structure.units
        whole = self.budget.cost(dense)
        now = np.concatenate([self.kept, dense[walked:]]).astype(np.int64)
        spent = self.budget.cost(now)
        least = self.budget.cost(np.concatenate([self.kept, self.budget.least[walked:]]).astype(np.int64))
        if walked < last:
            self._position = self._lagrangian.position(self.kept)
            self._bounds = self.budget.bounds_at(self.kept)
        low, high = self._bounds
        walk = {
            "reduced": (whole - spent) / whole,
            "rest": (spent - least) / whole,
            "budget": self.budget.fraction,
            "base": 1.0 - self._lagrangian.kept(self._position)[t] / dense[t],
            "least": 1.0 - high / dense[t],
            "most": 1.0 - low / dense[t],
            "last_action": 1.0 - self.kept[-1] / dense[walked - 1] if walked else 0.0,
        }
        values = np.array([walk[name] for name in WALK_FEATURES], dtype=np.float32)
        return np.concatenate([self.statistics[t], np.clip(values, 0.0, 1.0)])


def _key(kept: Kept) -> tuple[int, ...]:
    return tuple(int(count) for count in kept)
