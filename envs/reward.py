"""What the agent is paid for."""

from __future__ import annotations

from dataclasses import dataclass

from .evaluator import Evaluation

LEAST_LOSS = 1e-3  # a candidate may be right more often than the dense network
WORST_LOSS = 10.0  # a candidate that blew up says no more than that; a larger loss would drown what the critic knows


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the reward's terms, each ≥ 0.

    Attributes:
        accuracy: of top-1 on the search images, as a fraction.
        reconstruction: of the logit distance from the dense network, at most 10 (subtracted).
        flops: of the fraction of FLOPs kept (subtracted).
    """

    accuracy: float = 1.0
    reconstruction: float = 1.0
    flops: float = 0.0

    def terms(self, evaluation: Evaluation) -> dict[str, float]:
        """The weighted terms; their sum is the reward."""
        return {
            "accuracy": self.accuracy * evaluation.accuracy / 100.0,
            "reconstruction": -self.reconstruction * min(evaluation.reconstruction_loss, WORST_LOSS),
            "flops": -self.flops * evaluation.flops,
        }

    def reward(self, evaluation: Evaluation) -> float:
        """The sum of the terms."""
        return sum(self.terms(evaluation).values())

    def lost(self, evaluation: Evaluation, dense: Evaluation) -> float:
        """What a candidate is paid less than the dense network would be at the same cost; at least a thousandth."""
        paid, whole = self.terms(evaluation), self.terms(dense)
        return max(LEAST_LOSS, sum(whole[name] - paid[name] for name in ("accuracy", "reconstruction")))
