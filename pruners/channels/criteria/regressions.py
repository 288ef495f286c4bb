"""The consumers of a layer as regression problems on the dense network's moments: what `obs` and `lasso` work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...context import Context
from ...repair.statistics import Sampler
from ..slices import ChannelLayer


@dataclass(frozen=True)
class Regression:
    """One consumer: its output Y = X Wᵀ as a sum over the columns of X.

    Attributes:
        name: of the consumer.
        weight: (groups, q, p) dense, double.
        gram: (groups, p, p) XᵀX a sample, centred where an intercept absorbs the mean; over `total`.
        columns: (units, m) which columns belong to each unit, the same in every group.
        total: variance of the dense output, summed over groups and channels; consumers become comparable by it.
    """

    name: str
    weight: Tensor
    gram: Tensor
    columns: Tensor
    total: float


def regressions(context: Context, layer: ChannelLayer) -> list[Regression]:
    """A layer's consumers, without those that least squares does not know and those whose output never moves."""
    found = []
    for name, positions in consumer_positions(layer).items():
        if name not in context.moments.inputs:
            continue
        parameter = context.model.get_parameter(f"{name}.weight").detach()
        weight = Sampler(context.model.get_submodule(name)).weight(parameter)
        gram = context.moments.gram(context.model, name)
        total = float(torch.einsum("gqp,gpr,gqr->", weight, gram, weight))
        if not total > 0.0:
            continue
        channels = parameter.shape[1]
        kernel = np.arange(weight.shape[2] // channels) * channels  # kernel position outside, input channel inside
        columns = (kernel[:, None] + positions[:, None, :]).reshape(len(positions), -1)
        found.append(Regression(name, weight, gram.div_(total), torch.from_numpy(columns).to(weight.device), total))
    return found


def consumer_positions(layer: ChannelLayer) -> dict[str, NDArray[np.int64]]:
    """Consumer → (units, k) where each unit lies among its inputs (those of one group); what comes twice, joined."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for part in layer.weights("in"):
        found.setdefault(part.module, []).append(part.positions)
    return {name: np.stack([np.unique(row) for row in np.hstack(parts)]) for name, parts in found.items()}
