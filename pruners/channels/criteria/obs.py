"""Optimal brain surgeon on groups of columns: which unit costs least once the others have been re-fitted.

Starting from all units of a layer, the one goes whose removal costs least after least squares on the rest; what is
left is re-fitted, and so on; of the many units of a wide layer several go at once. With the (damped) Gram matrix
G = XᵀX + λI, its inverse P and the current weights W of a consumer, removing the columns R costs tr(W_R P_RR⁻¹ W_Rᵀ);
then W ← W − W_R P_RR⁻¹ P_R: and P ← P − P_:R P_RR⁻¹ P_R: (Hassibi & Stork, NeurIPS 1992, eq. 5, for blocks; with one
Gram matrix a layer as in Frantar & Alistarh, NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...context import Context
from ...repair.solve import damped_inverse
from ..slices import ChannelLayer
from .norms import l1
from .registry import Order, register_criterion
from .regressions import Regression, regressions

AT_ONCE = 256  # one in so many of the units that are left goes at once, at least one: of 4,096 an eighth of the work
PENDING = 256  # columns whose removal from the inverse waits, so that a wide layer's is one large product


@dataclass(frozen=True)
class Elimination:
    """A layer's nested order, and what every width of it costs: once for all ratios.

    Attributes:
        order: (units,) its units from the last to the first removed, so from the most to the least important.
        errors: (units + 1,) errors[k] is 1 − R² of the consumers' outputs, in [0, 1], with the first k units of
            `order` kept and re-fitted; the mean over consumers. Never rises with k; errors[width] = 0. On a straight
            line between those known, where units went together.
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
    found = regressions(context, layer)
    if not found:
        order = np.argsort(-l1(context, layer), kind="stable")
        return Elimination(order, np.linspace(1.0, 0.0, layer.units + 1))
    return _greedy([_Surgery(found.pop(0)) for _ in range(len(found))], layer.units)  # a Gram matrix less at a time


def _greedy(surgeries: Sequence[_Surgery], width: int, at_once: int = AT_ONCE) -> Elimination:
    """Take the cheapest units out of all consumers until none is left."""
    order: Order = np.zeros(0, dtype=np.int64)
    known = {width: 0.0}  # units kept → error
    while len(order) < width:
        costs = np.sum([surgery.costs() for surgery in surgeries], axis=0)
        units = costs.argsort(kind="stable")[: max(1, (width - len(order)) // at_once)]
        for surgery in surgeries:
            surgery.remove(units)
        order = np.concatenate([units[::-1], order])
        known[width - len(order)] = float(np.mean([surgery.error for surgery in surgeries]))
    kept, errors = np.array(sorted(known.items())).T
    errors = np.maximum.accumulate(errors[::-1])[::-1].clip(0.0, 1.0)
    return Elimination(order, np.interp(np.arange(width + 1), kept, errors))


class _Surgery:
    """One consumer, and what is left of it.

    The m columns of every unit lie side by side, then come the columns that always stay. Taking a unit out changes
    the whole inverse, but the next costs look at the units' own blocks only: those and the weights are kept up to date,
    the inverse is P = `inverse` − UᵀU, the rows of U being L⁻¹ P_R: with P_RR = LLᵀ. Once `PENDING` rows wait they are
    subtracted in one product, and what has gone is dropped: on wide layers far less work and traffic (as the lazy
    batches of GPTQ, Frantar et al., ICLR 2023). Until then, where units have gone stands rounding, never read.

    Attributes:
        units: (n,) those in the matrices, ascending.
        present: (n,) which of them have not gone.
        weight: (groups, p, q) re-fitted so far, turned; outputs only count by WᵀW, so there are at most p of them.
        inverse: (groups, p, p) of the damped Gram matrix of the columns that are left, without what waits.
        blocks: (groups, n, m, m) the units' own of P; the identity for a unit that has gone.
        waiting: (groups, rows, p) of U.
        spent: the damped cost of all that is gone.
    """

    def __init__(self, regression: Regression, pending: int = PENDING) -> None:
        self.width, self.size = regression.columns.shape
        columns = regression.columns.flatten()
        stay = torch.ones(regression.gram.shape[1], dtype=torch.bool, device=columns.device)
        stay[columns] = False
        columns = torch.cat([columns, stay.nonzero().flatten()])
        weight = regression.weight[:, :, columns]
        if weight.shape[1] > weight.shape[2]:
            weight = torch.linalg.qr(weight, mode="r").R
        self.dense = weight.transpose(1, 2).contiguous()
        self.weight = self.dense.clone()
        self.inverse, self.ridge = damped_inverse(regression.gram[:, columns[:, None], columns])
        self.eye = torch.eye(self.size, dtype=self.inverse.dtype, device=self.inverse.device)
        self.units = np.arange(self.width)
        self.present = torch.ones(self.width, dtype=torch.bool, device=columns.device)
        own = self._by_unit(self._by_unit(self.inverse, 1), 3)
        self.blocks = own.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()
        self.pending = pending
        self.waiting = self.inverse[:, :0]
        self.spent = 0.0
        self.dropped = torch.zeros_like(self.ridge)  # squared dense weights of the columns no longer in the matrices

    def costs(self) -> NDArray[np.float64]:
        """(units,) tr(W_R P_RR⁻¹ W_Rᵀ) of each unit; infinite for those that have gone."""
        weight = self._by_unit(self.weight, 1)
        factor = torch.linalg.cholesky(self.blocks)
        solved = torch.cholesky_solve(weight @ weight.transpose(2, 3), factor)
        costs = solved.diagonal(dim1=2, dim2=3).sum((0, 2))
        found = np.full(self.width, np.inf)
        found[self.units] = costs.masked_fill(~self.present, np.inf).cpu().numpy()
        return found

    def remove(self, units: NDArray[np.int64]) -> None:
        """Take units out and re-fit the rest."""
        places = torch.from_numpy(np.searchsorted(self.units, units)).to(self.present.device)
        columns = (places[:, None] * self.size + torch.arange(self.size, device=places.device)).flatten()
        rows = self.inverse[:, columns] - self.waiting[:, :, columns].transpose(1, 2) @ self.waiting
        factor = torch.linalg.cholesky(rows[:, :, columns])
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)  # L⁻¹ P_R:
        lost = torch.linalg.solve_triangular(factor, self.weight[:, columns], upper=False)
        self.spent += float(lost.square().sum())
        self.weight.baddbmm_(rows.transpose(1, 2), lost, alpha=-1.0)
        own = self._by_unit(rows, 2).transpose(1, 2)
        self.blocks -= own.transpose(2, 3) @ own
        self.blocks[:, places] = self.eye
        self.present[places] = False
        self.waiting = torch.cat([self.waiting, rows], 1)
        if self.waiting.shape[1] >= self.pending:
            self._settle()

    def _settle(self) -> None:
        """Subtract what waits, and drop what has gone."""
        left = torch.ones(self.inverse.shape[1], dtype=torch.bool, device=self.inverse.device)
        left[: self.blocks.shape[1] * self.size] = self.present.repeat_interleave(self.size)
        rows = self.waiting[:, :, left]
        self.inverse = self.inverse[:, left][:, :, left].baddbmm_(rows.transpose(1, 2), rows, alpha=-1.0)
        self.waiting = self.inverse[:, :0]
        self.dropped += self.dense[:, ~left].square().sum((1, 2))
        self.weight, self.dense = self.weight[:, left], self.dense[:, left]
        self.blocks = self.blocks[:, self.present]
        self.units = self.units[self.present.cpu().numpy()]
        self.present = self.present[self.present]

    @property
    def error(self) -> float:
        """tr(D G Dᵀ) of the change D so far, as a fraction of the output's variance: what is spent, less the ridge."""
        change = self.dropped.clone()
        parts = zip(torch.split(self.dense, PENDING, 1), torch.split(self.weight, PENDING, 1), strict=True)
        for dense, weight in parts:
            change += torch.linalg.vector_norm(dense - weight, dim=(1, 2)).square()  # parts that the cache holds
        return max(0.0, self.spent - float((self.ridge * change).sum()))

    def _by_unit(self, matrix: Tensor, dim: int) -> Tensor:
        """That dimension's columns as (n, m), without the columns that always stay."""
        n, shape = len(self.units), matrix.shape
        return matrix.narrow(dim, 0, n * self.size).reshape(*shape[:dim], n, self.size, *shape[dim + 1 :])
