"""Criteria that every paper compares with, or that read nothing but a network's weights."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

from ...context import Context
from ..slices import ChannelLayer
from .norms import l1
from .registry import Order, Scores, filters, register_criterion, register_score


@register_score("max_response")
def max_response(context: Context, layer: ChannelLayer) -> Scores:
    """Σ|W| of the consumers' weights on a unit (He, Zhang, Sun, ICCV 2017), summed over consumers."""
    scores = np.zeros(layer.units)
    for part in layer.weights("in"):
        weight = context.model.get_parameter(part.parameter).detach().double()
        sums = weight.abs().transpose(0, part.dim).flatten(1).sum(1).cpu().numpy()
        scores += sums[part.positions].sum(1)
    return scores


@register_criterion("first_k")
def first_k(context: Context, layer: ChannelLayer) -> Order:
    """The first units stay (He, Zhang, Sun, ICCV 2017: a baseline)."""
    return np.arange(layer.units)


@register_criterion("random")
def random(context: Context, layer: ChannelLayer) -> Order:
    """An order drawn from the context's seed and the layer's name: the baseline that knows nothing."""
    generator = np.random.default_rng([context.seed % 2**64, zlib.crc32(layer.name.encode())])
    return generator.permutation(layer.units)


@register_score("bn_scale")
def bn_scale(context: Context, layer: ChannelLayer) -> Scores:
    """Mean |γ| of the batch norms a unit runs through (Liu et al., ICCV 2017, "network slimming"); l1 without any."""
    scales = _scales(context, layer)
    return np.mean(scales, axis=0) if scales else l1(context, layer)


def scale_statistics(context: Context, layer: ChannelLayer) -> dict[str, float]:
    """Mean |γ| of a layer's batch norms, summed over them, and its coefficient of variation over units; 0 without."""
    scales = sum(_scales(context, layer), start=np.zeros(layer.units))
    mean = float(scales.mean())
    return {"bn_scale": mean, "bn_spread": float(scales.std()) / max(mean, 1e-12)}


def _scales(context: Context, layer: ChannelLayer) -> list[Scores]:
    """|γ| of every batch norm that the units run through, (units,) each."""
    scales = []
    for part in layer.slices:
        module = context.model.get_submodule(part.module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and part.tensor == "weight":
            gamma = context.model.get_parameter(part.parameter).detach().double().abs().cpu().numpy()
            scales.append(gamma[part.positions].mean(1))
    return scales


@register_score("fpgm")
def fpgm(context: Context, layer: ChannelLayer) -> Scores:
    """Distance of a unit's filters to all the others', summed over producers (He et al., CVPR 2019, "FPGM").

    What lies nearest to the geometric median, and so is most nearly said by the others, goes first.
    """
    scores = np.zeros(layer.units)
    for own in filters(context, layer):
        scores += torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu().numpy()
    return scores
