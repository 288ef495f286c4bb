"""What a layer's width costs the whole network, as far as the layer alone can tell."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .criteria import Context, elimination
from .inference import first_images, logits
from .reconstruction import repair_from_moments
from .shrink import shrink

IMAGES = 200  # calibration images that are looked at, for every layer once

LOST = 0.01  # of a consumer's output: where less is gone, the network's answer is mostly noise


def loss_curves(context: Context) -> list[NDArray[np.float64]]:
    """For every layer by units kept, (width + 1,): the logit distance that its cut alone brings, as predicted.

    The curve of its elimination, times its `influence`. To first order the error that a layer leaves in its consumers'
    output passes through the rest of the network linearly, so that the squared distance is proportional to it; and the
    errors of different layers, being all but uncorrelated, add up.
    """
    layers = context.structure.layers
    return [
        factor * elimination(context, layer).errors for factor, layer in zip(influence(context), layers, strict=True)
    ]


def influence(context: Context) -> NDArray[np.float64]:
    """(layers,) how far the logits move for a layer's error: distance a unit of lost output; computed once a context.

    Measured on the calibration images: half of the layer goes by its order of elimination, its consumers are re-fitted,
    everything else stays whole. The distance is that of the reward, over the variance of the dense logits.
    """
    found = context.store.get("influence", lambda: {"factors": torch.from_numpy(_measure(context))})
    return np.asarray(found["factors"].numpy())


def _measure(context: Context) -> NDArray[np.float64]:
    structure = context.structure
    images = first_images(context.calibration, IMAGES)
    dense = logits(context.model, images)
    spread = float(dense.var(dim=0).sum())
    factors = np.zeros(len(structure.layers))
    for index, layer in enumerate(structure.layers):
        order, errors = elimination(context, layer).order, elimination(context, layer).errors
        kept = max(1, min(layer.width // 2, int(np.sum(errors > LOST)) - 1))
        selection = structure.cut_alone(index, order, 1.0 - kept / layer.width)
        pruned = shrink(context.model, structure, selection).eval()
        repair_from_moments(pruned, context.model, structure, selection, context.moments)
        distance = float((logits(pruned, images) - dense).square().sum(dim=1).mean()) / spread
        factors[index] = distance / max(float(errors[kept]), LOST)
    return factors
