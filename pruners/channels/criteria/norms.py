"""Criteria that look at nothing but the producers' filters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ...context import Context
from ..slices import ChannelLayer
from .registry import Scores, of_filters, register_score


@register_score("l1")
def l1(context: Context, layer: ChannelLayer) -> Scores:
    """Σ|w| of a unit's filters, summed over the coupled producers (Li et al., ICLR 2017)."""
    return _sum(context, layer, lambda own: own.abs().sum(1))


@register_score("l2")
def l2(context: Context, layer: ChannelLayer) -> Scores:
    """Euclidean norm of a unit's filters, summed over the coupled producers."""
    return _sum(context, layer, lambda own: own.square().sum(1).sqrt())


def squared_norms(context: Context, layer: ChannelLayer) -> Scores:
    """(units,) squared norms of the units' filters, summed over the coupled producers."""
    return _sum(context, layer, lambda own: own.square().sum(1))


def _sum(context: Context, layer: ChannelLayer, measure: Callable[[Tensor], Tensor]) -> Scores:
    return sum(of_filters(context, layer, measure), start=np.zeros(layer.units))
