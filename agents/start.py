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
    """As the correction that comes with the package has it, where one was learnt for the method.

    Args:
        context: the dense network; no candidate is evaluated.
        budget: that the correction is for.
    """
    correction, method = shipped(), context.structure.method
    if not serves(method):
        return cold(context, f"no correction was learnt for method {method}")
    return Start(correction.corrected(context, budget), correction.identity, str(correction))


def doubt(context: Context, budget: Budget) -> str | None:
    """Why the correction is not to be relied on where no candidate is evaluated, in a line; none where it is."""
    if not serves(context.structure.method):
        return f"no correction was learnt for method {context.structure.method}"
    if others := [kind for kind in budget.fractions if kind != "flops"]:
        return f"corrections were learnt from budgets of FLOPs, not of {others[0]}"
    return shipped().doubt(layer_features(context, LossModel.of(context), budget))


def serves(method: str) -> bool:
    """Whether a correction was learnt for this method."""
    return method == shipped().about["method"]
