"""How far the answers move for what a layer loses: measured on the dense network, one layer cut at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from ...configs.schema import LARGE
from ...networks.fused import Fused
from ...networks.inference import Batches, first_images, in_channels_last, logits
from ...training.inputs import InputShape, Integers, taken
from ..context import Context
from ..structure import Floats, Layer
from .gram import repair_from_moments

IMAGES = 200  # calibration images that layer sensitivities are measured on
LARGE_IMAGES = 50  # of large ones
LOST = 0.01  # of a consumer's output: where less is gone, the network's answer is mostly noise


def layer_sensitivity(context: Context) -> Floats:
    """(layers,) how far the logits move for a layer's error: distance a unit of lost output; computed once a context.

    Measured on the calibration images: half of the layer goes (the least of its `probes`), its consumers are re-fitted,
    everything else stays whole. The distance is that of the reward, over the variance of the dense logits. Every layer
    costs a pass of these images for each of its probes; large ones, of which a pass costs most, are fewer
    (`LARGE_IMAGES`).
    """
    return np.array([float(told["factor"][0]) for told in sensitivities(context)])


def sensitivities(context: Context) -> list[Mapping[str, Tensor]]:
    """For every layer what its consumers have `lost` at its probes, rising, (probes,), the distance for that as a
    `factor`, (probes,), and the distance where `none` of it is kept if that is a choice."""
    context = replace(context, criterion=context.method.criterion)  # the one that the curves are for
    images = in_channels_last(few_images(context))

    @cache
    def fused() -> Fused:
        return Fused(context.model, taken(images[0][0], slice(1)))

    def answers(model: nn.Module) -> Tensor:
        return logits(fused()(model), images, context.objective.features)

    @cache
    def dense() -> Tensor:
        return answers(context.model)

    def measured(index: int, curve: Floats) -> dict[str, Tensor]:
        layer = context.structure.layers[index]
        lost = {float(curve[choice]): choice for choice in _choices(layer, curve)}
        factors = [away(index, lost[part]) / max(part, LOST) for part in sorted(lost)]
        found = {"lost": sorted(lost), "factor": factors, **({} if layer.choices[0] else {"none": away(index, 0)})}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def away(index: int, choice: int) -> float:
        return _cut_alone(context, index, choice, answers, dense())

    structure, curves = context.structure, context.method.curves(context)
    asked = [structure.index(layer.like or layer.name) for layer in structure.layers]
    return [
        context.store.get(f"sensitivity-{structure.layers[index].name}", partial(measured, index, curves[index]))
        for index in asked
    ]


def few_images(context: Context) -> Batches:
    """The calibration images that tell what one layer loses: the first `IMAGES`, of large ones `LARGE_IMAGES`."""
    return first_images(context.calibration, LARGE_IMAGES if _large(context.structure.input_shape) else IMAGES)


def _large(shape: InputShape) -> bool:
    """Whether a pass of such images is what costs most: of all that goes in, one is an image of `LARGE` pixels up."""
    if isinstance(shape, Integers):
        return False
    if not isinstance(shape, Mapping) and all(isinstance(size, int) for size in shape):
        return len(shape) > 2 and min(shape[1:]) >= LARGE
    return any(map(_large, shape.values() if isinstance(shape, Mapping) else shape))


def _choices(layer: Layer, curve: Floats) -> list[int]:
    """Of a layer's choices those of its probes, by number: the largest within each at which anything is lost."""
    found = []
    for sparsity in layer.probes:
        telling = np.flatnonzero((curve > LOST) & (layer.levels <= (1.0 - sparsity) * layer.units))
        found.append(int(telling[-1]) if len(telling) else 0)
    return found


def _cut_alone(
    context: Context, index: int, choice: int, answers: Callable[[nn.Module], Tensor], dense: Tensor
) -> float:
    """The distance that one layer's cut brings."""
    kept = context.structure.units.copy()
    kept[index] = context.structure.layers[index].levels[choice]
    compressed = context.method.apply(context, kept)
    repair_from_moments(compressed, context.model, context.moments)
    spread = float(dense.var(dim=0).sum())
    return float((answers(compressed.model) - dense).square().sum(dim=1).mean()) / spread
