"""Criteria that look at nothing but the producers' filters."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..layers import Layer
from .registry import Context, Scores, register_score


@register_score("l1")
def l1(context: Context, layer: Layer) -> Scores:
    """Σ|w| of a unit's filters, summed over the coupled producers (Li et al., ICLR 2017)."""
    return _sum(layer, [filters.abs().sum(1) for filters in context.filters(layer)])


@register_score("l2")
def l2(context: Context, layer: Layer) -> Scores:
    """Euclidean norm of a unit's filters, summed over the coupled producers."""
    return _sum(layer, [filters.square().sum(1).sqrt() for filters in context.filters(layer)])


def _sum(layer: Layer, norms: list[Tensor]) -> Scores:
    return sum((norm.cpu().numpy() for norm in norms), start=np.zeros(layer.width))
