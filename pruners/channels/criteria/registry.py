"""The registry of criteria, and what a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....configs import Registry
from ...context import Context
from ..slices import ChannelLayer, Selection, channel_layers

Order = NDArray[np.int64]
Scores = NDArray[np.float64]

TOGETHER = 2**23  # weights of filters that are measured at once

Criterion = Callable[[Context, ChannelLayer], Order]
Score = Callable[[Context, ChannelLayer], Scores]


def _adopted(name: str, function: Callable[..., Any], known: Mapping[str, Criterion]) -> Criterion:
    """As it is registered: an order and scores look alike."""
    for registered in known.values():
        if function in (registered, getattr(registered, "score", None)):
            return registered
    raise ValueError(
        f"criterion={name} may be an order or scores: decorate it with @register_criterion(name) or "
        "@register_score(name) of secateur.pruners.channels.criteria"
    )


CRITERIA: Registry[Criterion] = Registry("criterion", _adopted)


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known: it maps a layer to its units from the most to the least important, all (units,)."""
    return CRITERIA.register(name)


@dataclass(frozen=True)
class ByScore:
    """A criterion that scores every unit by itself, (units,): the highest stay, ties keep their order."""

    score: Score

    def __call__(self, context: Context, layer: ChannelLayer) -> Order:
        """The order of the scores."""
        return np.argsort(-self.score(context, layer), kind="stable")


def register_score(name: str) -> Callable[[Score], Score]:
    """Make a criterion known that scores every unit by itself; see `ByScore`."""

    def register(score: Score) -> Score:
        CRITERIA.register(name)(ByScore(score))
        return score

    return register


def check_criterion(name: str) -> None:
    """Raises ValueError where there is no such criterion; the near miss is named."""
    _ = CRITERIA[name]


def filters(context: Context, layer: ChannelLayer) -> list[Tensor]:
    """For every coupled producer the (units, weights) filters of the layer's units, double.

    A layer that only samples what is there has none of its own: its consumer's weights on them instead.
    """
    return [weight[units].flatten(1).double() for weight, units in _filters(context, layer)]


def of_filters(context: Context, layer: ChannelLayer, measure: Callable[[Tensor], Tensor]) -> list[Scores]:
    """For every coupled producer (units,) what `measure` makes of the (units, weights) filters, some units at a time.

    All at once in double, those of a VGG's first linear layer take 0.8 GB.
    """
    found = []
    for weight, units in _filters(context, layer):
        some = torch.split(units, max(1, TOGETHER // weight[0].numel()))
        found.append(torch.cat([measure(weight[part].flatten(1).double()) for part in some]).cpu().numpy())
    return found


def _filters(context: Context, layer: ChannelLayer) -> Iterator[tuple[Tensor, Tensor]]:
    """For every coupled producer its weight, units first, and (units, …) where the layer's are."""
    for part in layer.weights("in" if layer.sampled else "out"):
        weight = context.model.get_parameter(part.parameter).detach().transpose(0, part.dim)
        yield weight, torch.from_numpy(part.positions).to(weight.device)


def rank(context: Context, criterion: str) -> list[Order]:
    """For every layer its units from the most to the least important."""
    order = CRITERIA[criterion]
    layers = channel_layers(context.structure)

    def orders() -> dict[str, Tensor]:
        return {layer.name: torch.from_numpy(np.ascontiguousarray(order(context, layer))) for layer in layers}

    ours = getattr(order, "score", order).__module__.startswith(f"{__package__}.")  # a key says nothing of other code
    found = (
        context.store.get(f"rank-{criterion}-{context.seed}", orders)
        if ours
        else _remembered(context, criterion, orders)
    )
    return [found[layer.name].numpy() for layer in layers]


def scores(context: Context, criterion: str) -> list[Scores]:
    """For every layer the scores of its units, (units,), the highest the most important.

    Raises:
        ValueError: there is no such criterion, or it orders the units without scores.
    """
    found = CRITERIA[criterion]
    if not isinstance(found, ByScore):
        scoring = [name for name, known in CRITERIA.items() if isinstance(known, ByScore)]
        raise ValueError(f"criterion {criterion!r} orders units, it does not score them: use {', '.join(scoring)}")
    return [found.score(context, layer) for layer in channel_layers(context.structure)]


def select(ranking: list[Order], kept: NDArray[np.int64]) -> Selection:
    """The best units of every layer, ascending."""
    return [np.sort(order[:count]) for order, count in zip(ranking, kept, strict=True)]


def _remembered(context: Context, criterion: str, orders: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """In this process alone."""
    known: dict[str, dict[str, Tensor]] = context.memo.setdefault("ranks", {})
    if criterion not in known:
        known[criterion] = orders()
    return known[criterion]
