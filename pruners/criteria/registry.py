"""The registry of criteria, and what a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...configs import did_you_mean
from ..cache import Store
from ..layers import Layer, Selection, Structure
from ..reconstruction import Batches, DenseMoments, Moments, collect_inputs, following_norms

Order = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Context:
    """What a criterion may look at.

    Attributes:
        model: the dense network, in eval mode; never changed.
        structure: its layers.
        calibration: images (N, C, H, W) and labels, in batches.
        seed: for criteria that draw.
        store: remembers what depends on the network and these images alone.
    """

    model: nn.Module
    structure: Structure
    calibration: Batches
    seed: int = 0
    store: Store = field(default_factory=Store)

    @cached_property
    def moments(self) -> DenseMoments:
        """Second moments of the consumers' inputs, from one pass of the calibration images."""
        state = self.store.get("moments", self._moments)
        device = self.calibration[0][0].device
        inputs = {
            name: Moments.restored(state, f"{name}:", device) for name in sorted({k.split(":")[0] for k in state})
        }
        return DenseMoments(inputs, following_norms(self.model, self.calibration[0][0][:1]))

    def _moments(self) -> dict[str, Tensor]:
        found = collect_inputs(self.model, self.structure, self.calibration)
        return {key: tensor for name, moments in found.items() for key, tensor in moments.state(f"{name}:").items()}

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What criteria keep for the next layer, in this process."""
        return {}

    def filters(self, layer: Layer) -> list[Tensor]:
        """For every coupled producer the (width, weights) filters of the layer's units, double.

        A layer that only samples what is there has none of its own: its consumer's weights on them instead.
        """
        found = []
        for part in layer.weights("in" if layer.sampled else "out"):
            weight = self.model.get_parameter(part.parameter).detach().double().transpose(0, part.dim)
            found.append(weight[torch.from_numpy(part.positions).to(weight.device)].flatten(1))
        return found


Criterion = Callable[[Context, Layer], Order]
Score = Callable[[Context, Layer], Scores]
_CRITERIA: dict[str, Criterion] = {}


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known: it maps a layer to its units from the most to the least important, all (width,)."""

    def register(criterion: Criterion) -> Criterion:
        _CRITERIA[name] = criterion
        return criterion

    return register


@dataclass(frozen=True)
class ByScore:
    """A criterion that scores every unit by itself, (width,): the highest stay, ties keep their order."""

    score: Score

    def __call__(self, context: Context, layer: Layer) -> Order:
        """The order of the scores."""
        return np.argsort(-self.score(context, layer), kind="stable")


def register_score(name: str) -> Callable[[Score], Score]:
    """Make a criterion known that scores every unit by itself; see `ByScore`."""

    def register(score: Score) -> Score:
        _CRITERIA[name] = ByScore(score)
        return score

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


def rank(context: Context, criterion: str) -> list[Order]:
    """For every layer its units from the most to the least important."""
    order = get_criterion(criterion)

    def orders() -> dict[str, Tensor]:
        return {layer.name: torch.from_numpy(order(context, layer)) for layer in context.structure.layers}

    ours = getattr(order, "score", order).__module__.startswith(f"{__package__}.")  # a key says nothing of other code
    found = context.store.get(f"rank-{criterion}", orders) if ours else orders()
    return [found[layer.name].numpy() for layer in context.structure.layers]


def scores(context: Context, criterion: str) -> list[Scores]:
    """For every layer the scores of its units, (width,), the highest the most important.

    Raises:
        ValueError: there is no such criterion, or it orders the units without scores.
    """
    found = get_criterion(criterion)
    if not isinstance(found, ByScore):
        scoring = [name for name in criteria() if isinstance(_CRITERIA[name], ByScore)]
        raise ValueError(f"criterion {criterion!r} orders units, it does not score them: use {', '.join(scoring)}")
    return [found.score(context, layer) for layer in context.structure.layers]


def select(ranking: list[Order], widths: NDArray[np.int64]) -> Selection:
    """The best units of every layer, ascending."""
    return [np.sort(order[:width]) for order, width in zip(ranking, widths, strict=True)]
