"""What may tell where the loss model errs: numbers of a layer, of its neighbours and of the budget, for any network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..envs.observation import STATIC_FEATURES, layer_statistics
from ..pruners.budget import Budget
from ..pruners.context import Context
from ..pruners.loss_model import LossModel, best_steps
from ..pruners.repair.residual_branches import residual_branch_variance
from ..pruners.structure import Floats

MODEL_FEATURES = {
    "sensitivity": "log of the curve's height, over the layers' geometric mean",
    "share": "log10 of the part of the residual sum that its branch is",
    "bend_low": "log of the error with half of it removed over that with a quarter removed",
    "bend_high": "log of the error with three quarters removed over that with half removed",
    "rank": "participation ratio of its consumers' inputs' covariance over their number: 1 if all are as strong",
    "norm": "1 where batch norms follow it",
    "sensitivity_before": "that of the layer before, less its own",
    "sensitivity_after": "that of the layer after, less its own",
    "error_before": "log of the error with half removed, of the layer before, less its own",
    "error_after": "the same of the layer after",
    "base_kept": "fraction that the loss model's own plan keeps of it",
    "base_before": "the same of the layer before",
    "base_after": "the same of the layer after",
    "base_loss": "log of what that plan loses there, over the layers' mean",
    "base_total": "log10 of what it loses in all layers",
    "budget": "fraction of the dense cost",
    "layers": "log2 of their number, over 8",
}

FEATURES = (*STATIC_FEATURES, *MODEL_FEATURES)
"""In the order of `layer_features`. Another list, order or meaning is another `VERSION`."""

VERSION = 1
LEAST = 1e-6  # of an error or a share: less is none


def layer_features(context: Context, losses: LossModel, budget: Budget) -> Floats:
    """(layers, features) of a network and a budget; every one finite, whatever the network.

    Computed from the dense network and calibration images alone; no candidate is evaluated.

    Args:
        context: the dense network.
        losses: its loss model, as predicted.
        budget: that is asked.
    """
    static = layer_statistics(context).astype(np.float64)
    return np.column_stack([static, _model_features(context, losses, budget)])


def base_terms(losses: LossModel, budget: Budget) -> tuple[Floats, Floats]:
    """(layers,) what the loss model's own plan keeps, as a fraction, and what it loses in each layer."""
    base = best_steps(budget, losses.gains(budget))
    return base / losses.structure.units, losses.terms(base) * losses.factors


def _model_features(context: Context, losses: LossModel, budget: Budget) -> Floats:
    layers = losses.structure.layers
    quarter, half, most = (
        _log([np.interp((1.0 - part) * layer.units, layer.levels, c) for layer, c in zip(layers, curves, strict=True)])
        for curves in [context.method.curves(context)]
        for part in (0.25, 0.5, 0.75)
    )
    height = _log([float(curve[0]) for curve in losses.curves])
    height -= height.mean()
    kept, terms = base_terms(losses, budget)
    total = max(float(terms.sum()), LEAST)
    norms = layer_statistics(context)[:, list(STATIC_FEATURES).index("bn_scale")]
    columns = {
        "sensitivity": height,
        "share": _log(residual_branch_variance(context)) / np.log(10),
        "bend_low": half - quarter,
        "bend_high": most - half,
        "rank": _ranks(context),
        "norm": (norms > 0.0).astype(np.float64),
        "sensitivity_before": _before(height) - height,
        "sensitivity_after": _after(height) - height,
        "error_before": _before(half) - half,
        "error_after": _after(half) - half,
        "base_kept": kept,
        "base_before": _before(kept),
        "base_after": _after(kept),
        "base_loss": np.log(np.maximum(terms / total * len(layers), 1e-3)),
        "base_total": np.full(len(layers), np.log10(total)),
        "budget": np.full(len(layers), budget.fraction),
        "layers": np.full(len(layers), np.log2(len(layers)) / 8),
    }
    table = np.column_stack([columns[name] for name in MODEL_FEATURES])
    return np.asarray(np.nan_to_num(table, posinf=0.0, neginf=0.0), dtype=np.float64)


def _ranks(context: Context) -> Floats:
    """(layers,) the mean over consumers of (Σλ)² / (n Σλ²), λ the eigenvalues; ½ where nothing was collected."""
    kept = context.store.get(f"ranks-{VERSION}", lambda: {"ranks": torch.from_numpy(_measured_ranks(context))})
    return np.asarray(kept["ranks"].numpy())


def _measured_ranks(context: Context) -> Floats:
    found = {name: _participation(moments.centered()[2].numpy()) for name, moments in context.moments.inputs.items()}
    means = [[found[name] for name in layer.consumers if name in found] for layer in context.structure.layers]
    return np.array([float(np.mean(values)) if values else 0.5 for values in means])


def _participation(covariance: NDArray[np.float64]) -> float:
    """Of (groups, n, n) covariances, all groups together."""
    trace = float(np.trace(covariance, axis1=1, axis2=2).sum())
    size = covariance.shape[0] * covariance.shape[1]
    return float(trace**2 / max(size * float(np.vdot(covariance, covariance)), np.finfo(float).tiny))


def _log(values: object) -> Floats:
    return np.asarray(np.log(np.maximum(np.asarray(values, dtype=np.float64), LEAST)))


def _before(values: Floats) -> Floats:
    """(layers,) of the layer before; the first has its own."""
    return np.concatenate([values[:1], values[:-1]])


def _after(values: Floats) -> Floats:
    """(layers,) of the layer after; the last has its own."""
    return np.concatenate([values[1:], values[-1:]])
