"""What every criterion must keep to; see `secateur.pruners.channels.criteria`, and `secateur.pruners.weights`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..configs.schema import Cut, LayersConfig
from ..pruners.channels.criteria.registry import CRITERIA, ByScore, Criterion, Order
from ..pruners.channels.slices import ChannelLayer, channel_layers
from ..pruners.context import Context
from ..pruners.structure import Layer
from ..pruners.weights import CRITERIA as WEIGHT_CRITERIA
from ..storage.cache import Store
from .rules import check_rules, require
from .toys import global_random, toy_context, toy_networks

WeightScores = Callable[[Context, Layer], Tensor]

SHOWN: Sequence[tuple[str, Cut]] = (
    ("plain", "inner"),
    ("biases", "inner"),
    ("depthwise", "inner"),
    ("residual", "sampled"),
    ("residual", "all"),
)


def check_criterion(criterion: str | Criterion, context: Context | None = None) -> None:
    """Check a criterion of the method `channels` against every rule of `CRITERION_RULES`.

    Args:
        criterion: a registered name, or a function (context, layer) → units from the most to the least important.
        context: a network and its layers; none takes the toys, with inner, sampled and all layers.

    Raises:
        AssertionError: a rule is broken; the message names it.
        ValueError: there is no criterion of that name; the near miss is named.
    """
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)
    order = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    shown = [context] if context is not None else _toys()
    for one in shown:
        for layer in channel_layers(one.structure):
            check_rules(f"criterion {name}, layer {layer.name},", CRITERION_RULES, Case(order, one, layer), one.model)


def check_weight_scores(criterion: str | WeightScores, context: Context | None = None) -> None:
    """Check a criterion of the method `weights`: finite scores of the tensor's shape, the same every time.

    Args:
        criterion: a registered name, or a function (context, layer) → scores of the tensor's shape.
        context: a network and its weight tensors; none takes the toys.

    Raises:
        AssertionError: a rule is broken; the message names it.
        ValueError: there is no criterion of that name; the near miss is named.
    """
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)
    scores = WEIGHT_CRITERIA[criterion] if isinstance(criterion, str) else criterion
    shown = [context] if context is not None else [toy_context("weights", network) for network in toy_networks()]
    rules = {"scores": _scores_have_the_shape, "deterministic": _scores_are_the_same}
    for one in shown:
        for layer in one.structure.layers:
            check_rules(f"criterion {name}, {layer.name},", rules, (scores, one, layer), one.model)


@dataclass(frozen=True)
class Case:
    """One criterion on one layer."""

    criterion: Criterion
    context: Context
    layer: ChannelLayer
    found: dict[int, Order] = field(default_factory=dict)

    def order(self, world: int) -> Order:
        """Units from the most to the least important; `world` seeds the generators that a criterion must not use."""
        if world not in self.found:
            fresh = replace(self.context, store=Store())
            with global_random(world):
                self.found[world] = self.criterion(fresh, self.layer)
        return self.found[world]


def _orders_all_units(case: Case) -> None:
    order, units = case.order(1), case.layer.units
    require(isinstance(order, np.ndarray) and order.shape == (units,), f"{order!r} is no array of {units} units")
    require(np.issubdtype(order.dtype, np.integer), f"{order.dtype} are no positions of units")
    require(np.array_equal(np.sort(order), np.arange(units)), f"{order.tolist()} is no order of {units} units")


def _scores_are_finite(case: Case) -> None:
    if isinstance(case.criterion, ByScore):
        scores = np.asarray(case.criterion.score(case.context, case.layer))
        require(scores.shape == (case.layer.units,), f"scores of shape {scores.shape} for {case.layer.units} units")
        require(not np.isnan(scores).any(), f"a score is NaN: {scores.tolist()}")


def _follows_its_seed(case: Case) -> None:
    one, other = case.order(1), case.order(2)
    require(np.array_equal(one, other), f"{one.tolist()}, then {other.tolist()}: draw from context.seed alone")


CRITERION_RULES: Mapping[str, Callable[[Case], None]] = {
    "scores": _scores_are_finite,
    "order": _orders_all_units,
    "deterministic": _follows_its_seed,
}


def _toys() -> list[Context]:
    return [toy_context("channels", name, config=LayersConfig(cut=cut)) for name, cut in SHOWN]


def _scores_have_the_shape(case: tuple[WeightScores, Context, Layer]) -> None:
    criterion, context, layer = case
    found, expected = criterion(context, layer), context.structure.shapes[layer.name]
    require(tuple(found.shape) == expected, f"scores of shape {tuple(found.shape)} for a tensor of {expected}")
    require(bool(torch.isfinite(found).all()), "a score is not finite")


def _scores_are_the_same(case: tuple[WeightScores, Context, Layer]) -> None:
    criterion, context, layer = case
    found = []
    for world in (1, 2):
        with global_random(world):
            found.append(criterion(context, layer))
    require(torch.equal(*found), "the scores are others the second time: draw from context.seed alone")
