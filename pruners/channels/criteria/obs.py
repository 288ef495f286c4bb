"""Optimal brain surgeon on groups of columns: which unit costs least once the others have been re-fitted.

Starting from all units of a layer, the one goes whose removal costs least after least squares on the rest; what is
left is re-fitted, and so on. With the (damped) Gram matrix G = XᵀX + λI, its inverse P and the current weights W of a
consumer, removing the columns R costs tr(W_R P_RR⁻¹ W_Rᵀ); then W ← W − W_R P_RR⁻¹ P_R: and P ← P − P_:R P_RR⁻¹ P_R:
(Hassibi & Stork, NeurIPS 1992, eq. 5, for blocks; with one Gram matrix a layer as in Frantar & Alistarh, NeurIPS 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...context import Context
from ...repair.solve import RIDGE
from ..slices import ChannelLayer
from .norms import l1
from .registry import Order, register_criterion
from .regressions import Regression, regressions


@dataclass(frozen=True)
class Elimination:
    """A layer's nested order, and what every width of it costs: once for all ratios.

    Attributes:
        order: (units,) its units from the last to the first removed, so from the most to the least important.
        errors: (units + 1,) errors[k] is 1 − R² of the consumers' outputs, in [0, 1], with the first k units of
            `order` kept and re-fitted; the mean over consumers. Never rises with k; errors[width] = 0.
    """

    order: Order
    errors: NDArray[np.float64]

    def state(self) -> dict[str, Tensor]:
        """For the store."""
        return {"order": torch.from_numpy(self.order), "errors": torch.from_numpy(self.errors)}


@register_criterion("obs")
def obs(context: Context, layer: ChannelLayer) -> Order:
    """The order of elimination; see the module."""
    return elimination(context, layer).order


def elimination(context: Context, layer: ChannelLayer) -> Elimination:
    """The order in which a layer's units are eliminated, and the error after each; computed once a context.

    Consumers count alike: each one's error is divided by the variance of its dense output. The ridge is `RIDGE` of
    the mean squared input, towards the old weights, the least of a repair's; the errors are without it. Where no
    consumer can be re-fitted (three-dimensional convolutions, outputs that never move), the order is that of `l1`,
    and the curve is a straight line from 1 to 0.
    """
    found = context.store.get(f"obs-{layer.name}", lambda: _eliminate(context, layer).state())
    return Elimination(found["order"].numpy(), found["errors"].numpy())


def _eliminate(context: Context, layer: ChannelLayer) -> Elimination:
    surgeries = [_Surgery(regression) for regression in regressions(context, layer)]
    if not surgeries:
        order = np.argsort(-l1(context, layer), kind="stable")
        return Elimination(order, np.linspace(1.0, 0.0, layer.units + 1))
    alive = np.arange(layer.units)
    errors = np.zeros(layer.units + 1)
    gone = []
    while len(alive):
        costs = sum((surgery.costs(alive) for surgery in surgeries), start=np.zeros(len(alive)))
        unit = int(alive[costs.argmin()])
        for surgery in surgeries:
            surgery.remove(unit)
        alive = alive[alive != unit]
        gone.append(unit)
        errors[len(alive)] = np.mean([surgery.error for surgery in surgeries])
    errors = np.maximum.accumulate(errors[::-1])[::-1].clip(0.0, 1.0)
    return Elimination(np.array(gone[::-1], dtype=np.int64), errors)


class _Surgery:
    """One consumer, and what is left of it.

    Attributes:
        weight: (groups, q, p) re-fitted so far; 0 where columns are gone.
        inverse: (groups, p, p) of the damped Gram matrix of the columns that are left; 0 elsewhere.
        spent: the damped cost of all that is gone.
    """

    def __init__(self, regression: Regression) -> None:
        self.columns = regression.columns
        self.dense = regression.weight
        self.weight = regression.weight.clone()
        scale = regression.gram.diagonal(dim1=1, dim2=2).mean(1)
        self.ridge = RIDGE * torch.maximum(scale, 1e-9 * scale.max())  # (groups,); a group may be all zero
        eye = torch.eye(regression.gram.shape[1], dtype=regression.gram.dtype, device=regression.gram.device)
        factor, info = torch.linalg.cholesky_ex(regression.gram + self.ridge[:, None, None] * eye)
        while bool((info > 0).any()):  # moments are summed in single precision: a wide Gram matrix may need more
            self.ridge = 10.0 * self.ridge
            factor, info = torch.linalg.cholesky_ex(regression.gram + self.ridge[:, None, None] * eye)
        self.inverse = torch.cholesky_inverse(factor)
        self.spent = 0.0

    def costs(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """(units,) tr(W_R P_RR⁻¹ W_Rᵀ) of each unit that is left."""
        columns = self.columns[torch.from_numpy(units).to(self.columns.device)]
        blocks = self.inverse[:, columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, :, columns].permute(0, 2, 3, 1)  # (groups, units, m, q)
        rooted = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), weights, upper=False)
        costs: NDArray[np.float64] = rooted.square().sum((0, 2, 3)).cpu().numpy()
        return costs

    def remove(self, unit: int) -> None:
        """Take a unit out and re-fit the rest."""
        columns = self.columns[unit]
        rows = self.inverse[:, columns]
        lost = self.weight[:, :, columns]
        factor = torch.linalg.cholesky(rows[:, :, columns])
        solved = torch.cholesky_solve(rows, factor)  # P_RR⁻¹ P_R:
        self.spent += float(torch.linalg.solve_triangular(factor, lost.transpose(1, 2), upper=False).square().sum())
        self.weight -= lost @ solved
        self.inverse -= rows.transpose(1, 2) @ solved
        self.weight[:, :, columns] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[:, :, columns] = 0.0

    @property
    def error(self) -> float:
        """tr(D G Dᵀ) of the change D so far, as a fraction of the output's variance: what is spent, less the ridge."""
        change = (self.dense - self.weight).square().sum((1, 2))
        return max(0.0, self.spent - float((self.ridge * change).sum()))
