"""Criteria that every paper compares with, or that read nothing but a network's weights."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn

from ..layers import Layer
from .norms import l1
from .registry import Context, Order, Scores, register_criterion, register_score


@register_score("max_response")
def max_response(context: Context, layer: Layer) -> Scores:
    """Σ|W| of the consumers' weights on a unit (He, Zhang, Sun, ICCV 2017), summed over consumers."""
    scores = np.zeros(layer.width)
    for part in layer.weights("in"):
        weight = context.model.get_parameter(part.parameter).detach().double()
        sums = weight.abs().transpose(0, 1).flatten(1).sum(1).cpu().numpy()
        scores += sums[part.positions].sum(1)
    return scores


@register_criterion("first_k")
def first_k(context: Context, layer: Layer) -> Order:
    """The first units stay (He, Zhang, Sun, ICCV 2017: a baseline)."""
    return np.arange(layer.width)


@register_criterion("random")
def random(context: Context, layer: Layer) -> Order:
    """An order drawn from the context's seed and the layer's name: the baseline that knows nothing."""
    generator = np.random.default_rng([context.seed % 2**64, zlib.crc32(layer.name.encode())])
    return generator.permutation(layer.width)


@register_score("bn_scale")
def bn_scale(context: Context, layer: Layer) -> Scores:
    """Mean |γ| of the batch norms a unit runs through (Liu et al., ICCV 2017, "network slimming"); l1 without any."""
    scales = []
    for part in layer.slices:
        module = context.model.get_submodule(part.module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and part.tensor == "weight":
            gamma = context.model.get_parameter(part.parameter).detach().double().abs().cpu().numpy()
            scales.append(gamma[part.positions].mean(1))
    return np.mean(scales, axis=0) if scales else l1(context, layer)


@register_score("fpgm")
def fpgm(context: Context, layer: Layer) -> Scores:
    """Distance of a unit's filters to all the others', summed over producers (He et al., CVPR 2019, "FPGM").

    What lies nearest to the geometric median, and so is most nearly said by the others, goes first.
    """
    scores = np.zeros(layer.width)
    for filters in context.filters(layer):
        scores += torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu().numpy()
    return scores
