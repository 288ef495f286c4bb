"""What a plan is worth, and what the agent is paid for it."""

from __future__ import annotations

from dataclasses import dataclass

from .evaluator import Evaluation

LEAST_LOSS = 1e-3  # of the base plan, that gains are counted in: less is noise
WORST_LOSS = 10.0  # a candidate that blew up says no more than that; a larger loss would drown what the critic knows
WORST_GAIN = -1.5  # that a replay buffer holds; what is worse is bad, and no more than that


@dataclass(frozen=True)
class RewardWeights:
    """Weights of a plan's terms, each ≥ 0.

    Attributes:
        accuracy: of the score on the search images, as a fraction.
        reconstruction: of the logit distance from the dense network, at most 10 (subtracted).
        flops: of the fraction of FLOPs kept (subtracted).
    """

    accuracy: float = 1.0
    reconstruction: float = 1.0
    flops: float = 0.0

    def terms(self, evaluation: Evaluation) -> dict[str, float]:
        """The weighted terms; their sum is the plan's quality."""
        return {
            "accuracy": self.accuracy * evaluation.accuracy / 100.0,
            "reconstruction": -self.reconstruction * min(evaluation.reconstruction_loss, WORST_LOSS),
            "flops": -self.flops * evaluation.flops,
        }

    def quality(self, evaluation: Evaluation) -> float:
        """The sum of the terms: what plans are chosen by, comparable between runs."""
        return sum(self.terms(evaluation).values())

    def lost(self, evaluation: Evaluation, dense: Evaluation) -> float:
        """Quality below the dense network's at the same cost; no less than 0, though a plan may be right more often."""
        mine, whole = self.terms(evaluation), self.terms(dense)
        return max(0.0, sum(whole[name] - mine[name] for name in ("accuracy", "reconstruction")))


@dataclass(frozen=True)
class Base:
    """The plan that a gain is counted from: the first loss model's own.

    Attributes:
        flops: fraction of the FLOPs it keeps.
        lost: what it loses (`RewardWeights.lost`), measured on the budget asked, predicted from that on another.
    """

    flops: float
    lost: float

    def gain(self, weights: RewardWeights, evaluation: Evaluation, dense: Evaluation) -> float:
        """The part of the base plan's loss that a plan wins back: 0 for the base plan, 1 for one that loses nothing.

        So budgets and networks are on one scale. No less than `WORST_GAIN`.
        """
        spared = weights.flops * (self.flops - evaluation.flops)
        return max(WORST_GAIN, (self.lost - weights.lost(evaluation, dense) + spared) / max(LEAST_LOSS, self.lost))
