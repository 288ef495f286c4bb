"""Criteria that look at nothing but the producers' filters."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...context import Context
from ..slices import ChannelLayer
from .registry import Scores, filters, register_score


@register_score("l1")
def l1(context: Context, layer: ChannelLayer) -> Scores:
    """Σ|w| of a unit's filters, summed over the coupled producers (Li et al., ICLR 2017)."""
    return _sum(layer, [own.abs().sum(1) for own in filters(context, layer)])


@register_score("l2")
def l2(context: Context, layer: ChannelLayer) -> Scores:
    """Euclidean norm of a unit's filters, summed over the coupled producers."""
    return _sum(layer, [own.square().sum(1).sqrt() for own in filters(context, layer)])


def _sum(layer: ChannelLayer, norms: list[Tensor]) -> Scores:
    return sum((norm.cpu().numpy() for norm in norms), start=np.zeros(layer.units))
