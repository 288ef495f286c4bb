"""Channel selection by LASSO (He, Zhang, Sun, ICCV 2017, eq. 2)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from ...context import Context
from ..slices import ChannelLayer
from .norms import l1
from .registry import Order, register_criterion
from .regressions import Regression, regressions

TWINS = 1e-6  # what the correlation of two units that say the same may lack to 1


@register_criterion("lasso")
def lasso(context: Context, layer: ChannelLayer) -> Order:
    """min over β of ½‖Y − Σ βᵢ Zᵢ‖² + λ‖β‖₁ with Zᵢ = Xᵢ Wᵢᵀ and ‖Wᵢ‖ = 1; λ rises until ‖β‖₀ ≤ c′.

    Everything in it is known from the Gram matrix: ⟨Zᵢ, Zⱼ⟩ and ⟨Zᵢ, Y⟩. The whole path over λ is solved once (LARS);
    the units are ordered by the largest λ at which they are still in, so that the first c′ are what the paper keeps
    wherever no unit leaves the path again. Units that never enter follow by their correlation with Y; last are those
    that say, but for their size, what another one says: of equals one is enough, and a path would break at the tie.

    Y is what the layer contributes to its consumers' output, each consumer divided by its variance; l1 where none of
    them can be re-fitted.
    """
    found = regressions(context, layer)
    if not found:
        return np.argsort(-l1(context, layer), kind="stable")
    gram, cross = problem(found)
    twins = _said_before(gram)
    fresh = np.flatnonzero(~twins)
    last = np.flatnonzero(twins)
    order = _path_order(gram[np.ix_(fresh, fresh)], cross[fresh])
    return np.concatenate([fresh[order], last[np.argsort(-np.abs(cross[last]), kind="stable")]])


def _path_order(gram: NDArray[np.float64], cross: NDArray[np.float64]) -> Order:
    """The units by when they leave the path for good; see `lasso`."""
    from sklearn.exceptions import ConvergenceWarning  # a second to import, and only this criterion needs it
    from sklearn.linear_model import lars_path_gram

    scale = max(float(gram.diagonal().mean()), np.finfo(np.float64).tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what others say together: it is left out of the path
        penalties, _, path = lars_path_gram(cross / scale, gram / scale, n_samples=1, method="lasso")
    alive = np.zeros((len(cross), len(penalties) + 1), dtype=bool)
    alive[:, : len(penalties)] = path != 0.0
    first = np.where(alive.any(1), alive.argmax(1), len(penalties))
    return np.lexsort((-np.abs(cross), first))


def problem(found: list[Regression]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """⟨Zᵢ, Zⱼ⟩ (units, width) and ⟨Zᵢ, Y⟩ (units,) a sample, summed over consumers, with ‖Wᵢ‖ = 1 over all of them."""
    products = squares = torch.zeros((), dtype=torch.float64)
    for regression in found:
        weight, columns = regression.weight, regression.columns
        whole = (regression.gram * (weight.transpose(1, 2) @ weight)).sum(0)
        units = torch.zeros(len(columns), len(whole), dtype=whole.dtype, device=whole.device)
        units.scatter_(1, columns, 1.0)
        products = products.to(whole.device) + units @ whole @ units.T
        squares = squares.to(whole.device) + weight.square().sum((0, 1))[columns].sum(1) / regression.total
    gram, norm = products.cpu().numpy(), squares.sqrt().cpu().numpy()
    norm = np.where(norm > 0.0, norm, 1.0)
    return gram / np.outer(norm, norm), gram.sum(1) / norm


def _said_before(gram: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(units,) whether an earlier unit is a multiple of it, to the precision of the moments."""
    size = np.sqrt(gram.diagonal())
    says = size > 1e-4 * size.max(initial=0.0)  # below, rounding errors are alike
    alike = np.abs(gram) >= (1.0 - TWINS) * np.outer(size, size)
    return np.asarray(np.tril(alike & np.outer(says, says), -1).any(1))
