"""Channel selection by LASSO (He, Zhang, Sun, ICCV 2017, eq. 2)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

from ...context import Context
from ..slices import ChannelLayer
from .norms import l1
from .registry import Order, register_criterion
from .regressions import Regression, regressions


@register_criterion("lasso")
def lasso(context: Context, layer: ChannelLayer) -> Order:
    """min over β of ½‖Y − Σ βᵢ Zᵢ‖² + λ‖β‖₁ with Zᵢ = Xᵢ Wᵢᵀ and ‖Wᵢ‖ = 1; λ rises until ‖β‖₀ ≤ c′.

    Everything in it is known from the Gram matrix: ⟨Zᵢ, Zⱼ⟩ and ⟨Zᵢ, Y⟩. The whole path over λ is solved once (LARS);
    the units are ordered by the largest λ at which they are still in, so that the first c′ are what the paper keeps
    wherever no unit leaves the path again. Units that never enter follow by their correlation with Y.

    Y is what the layer contributes to its consumers' output, each consumer divided by its variance; l1 where none of
    them can be re-fitted.
    """
    found = regressions(context, layer)
    if not found:
        return np.argsort(-l1(context, layer), kind="stable")
    gram, cross = problem(found)
    scale = max(float(gram.diagonal().mean()), np.finfo(np.float64).tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # units that say the same: one enters, the others are left
        penalties, _, path = lars_path_gram(cross / scale, gram / scale, n_samples=1, method="lasso")
    alive = np.zeros((layer.units, len(penalties) + 1), dtype=bool)
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
