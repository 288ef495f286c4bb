"""What is known before any candidate: the loss model as predicted, or as other networks have corrected it."""

from __future__ import annotations

from dataclasses import dataclass

from ..pruners.budget import Budget
from ..pruners.context import Context
from ..pruners.loss_model import LossModel
from .correction import shipped
from .features import layer_features


@dataclass(frozen=True)
class Start:
    """What a search begins with, and a plan without a search is made from.

    Attributes:
        losses: the loss model.
        correction: identity of what has corrected it; empty where it is as predicted.
        reason: of that, in a line.
    """

    losses: LossModel
    correction: str
    reason: str

    def __str__(self) -> str:
        return f"{'as other networks have corrected it' if self.correction else 'as predicted'}: {self.reason}"

    def as_dict(self) -> dict[str, str | None]:
        """For a file."""
        return {"correction": self.correction or None, "reason": self.reason}


def cold(context: Context, reason: str = "from scratch, as asked") -> Start:
    """As predicted from the dense network alone."""
    return Start(LossModel.of(context), "", reason)


def warm(context: Context, budget: Budget) -> Start:
    """As the correction that comes with the package has it, where that was learnt for such networks.

    Args:
        context: the dense network; no candidate is evaluated.
        budget: that the correction is for.
    """
    correction, method = shipped(), context.structure.method
    if not serves(method):
        return cold(context, f"no correction was learnt for method {method}")
    losses = LossModel.of(context)
    features = layer_features(context, losses, budget)
    if (doubt := correction.doubt(features)) is not None:
        return cold(context, doubt)
    return Start(correction.applied(losses, features, budget), correction.identity, str(correction))


def serves(method: str) -> bool:
    """Whether a correction was learnt for this method."""
    return method == shipped().about["method"]
