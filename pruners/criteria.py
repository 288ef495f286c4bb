"""Criteria: rank the units inside one layer. A new one is one function and one decorator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..configs import did_you_mean
from .layers import Layer, Selection, Structure

Criterion = Callable[[nn.Module, Layer], NDArray[np.float64]]
_CRITERIA: dict[str, Criterion] = {}


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known under a name; it maps (network, layer) to (width,) scores, the highest stay."""

    def register(criterion: Criterion) -> Criterion:
        _CRITERIA[name] = criterion
        return criterion

    return register


def criteria() -> list[str]:
    """The names there are."""
    return sorted(_CRITERIA)


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        ValueError: there is none; the near miss is named.
    """
    if name not in _CRITERIA:
        raise ValueError(f"no criterion {name!r}, only {', '.join(criteria())}{did_you_mean(name, criteria())}")
    return _CRITERIA[name]


def rank(model: nn.Module, structure: Structure, criterion: str) -> list[NDArray[np.int64]]:
    """For every layer its units from the most to the least important; ties keep their order."""
    score = get_criterion(criterion)
    return [np.argsort(-score(model, layer), kind="stable") for layer in structure.layers]


def select(ranking: list[NDArray[np.int64]], widths: NDArray[np.int64]) -> Selection:
    """The best units of every layer, ascending."""
    return [np.sort(order[:width]) for order, width in zip(ranking, widths, strict=True)]


@register_criterion("l1")
def l1(model: nn.Module, layer: Layer) -> NDArray[np.float64]:
    """Σ|w| of a unit's filters, summed over the coupled producers (Li et al., ICLR 2017)."""
    return _filter_norm(model, layer, lambda filters: filters.abs().sum(1))


@register_criterion("l2")
def l2(model: nn.Module, layer: Layer) -> NDArray[np.float64]:
    """Euclidean norm of a unit's filters, summed over the coupled producers."""
    return _filter_norm(model, layer, lambda filters: filters.square().sum(1).sqrt())


def _filter_norm(model: nn.Module, layer: Layer, norm: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
    """Σ over producers of a norm of the (width, weights) filters of every unit."""
    total = np.zeros(layer.width)
    for part in layer.weights("out"):
        weight = model.get_parameter(part.parameter).detach().double()
        filters = weight[torch.from_numpy(part.positions).to(weight.device)]  # (width, k, …)
        total += norm(filters.flatten(1)).cpu().numpy()
    return total
