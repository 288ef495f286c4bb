"""Every criterion keeps the rules, and every rule catches who breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.pruners import Context, Layer
from secateur.pruners.channels.criteria import CRITERIA
from secateur.pruners.channels.criteria.registry import ByScore, Order
from secateur.pruners.channels.slices import ChannelLayer
from secateur.pruners.weights import CRITERIA as WEIGHT_CRITERIA
from secateur.testing import CRITERION_RULES, check_criterion, check_weight_scores, toy_context


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "rar" else n for n in CRITERIA])
def test_every_criterion_keeps_the_rules(name: str):
    check_criterion(name)


@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_every_criterion_of_weights_keeps_the_rules(name: str):
    check_weight_scores(name)


def twice_the_first(context: Context, layer: ChannelLayer) -> Order:
    return np.zeros(layer.units, dtype=np.int64)


def as_scores(context: Context, layer: ChannelLayer) -> Order:
    return np.linspace(0.0, 1.0, layer.units)  # type: ignore[return-value]


def too_short(context: Context, layer: ChannelLayer) -> Order:
    return np.arange(layer.units - 1)


def from_the_world(context: Context, layer: ChannelLayer) -> Order:
    return np.random.permutation(layer.units)


def zeroing(context: Context, layer: ChannelLayer) -> Order:
    with torch.no_grad():
        context.model.get_parameter(layer.parameters[0]).zero_()
    return np.arange(layer.units)


def raising(context: Context, layer: ChannelLayer) -> Order:
    raise KeyError("no such batch norm")


nan_scores = ByScore(lambda _context, layer: np.full(layer.units, np.nan))


@pytest.mark.parametrize(
    ("rule", "criterion", "found"),
    [
        ("order", twice_the_first, "is no order of"),
        ("order", as_scores, "no positions"),
        ("order", too_short, "no array of"),
        ("order", raising, "KeyError.*no such batch norm"),
        ("scores", nan_scores, "NaN"),
        ("deterministic", from_the_world, "draw from context.seed alone"),
        ("untouched", zeroing, "changed"),
    ],
)
def test_who_breaks_a_rule_is_told_which(rule: str, criterion: Callable[[Context, ChannelLayer], Order], found: str):
    assert rule in {*CRITERION_RULES, "untouched"}
    with pytest.raises(AssertionError, match=f"(?s)criterion .*, layer .* breaks the rule '{rule}'.*{found}"):
        check_criterion(criterion, toy_context())


def random_scores(context: Context, layer: Layer) -> Tensor:
    return torch.rand(context.structure.shapes[layer.name])


def flat_scores(context: Context, layer: Layer) -> Tensor:
    return torch.zeros(layer.units)


def infinite_scores(context: Context, layer: Layer) -> Tensor:
    return torch.full(context.structure.shapes[layer.name], float("inf"))


@pytest.mark.parametrize(
    ("criterion", "found"),
    [
        (random_scores, "'deterministic'.*others the second time"),
        (flat_scores, "'scores'.*for a tensor of"),
        (infinite_scores, "'scores'.*not finite"),
    ],
)
def test_scores_of_weights_that_break_a_rule(criterion: Callable[[Context, Layer], Tensor], found: str):
    with pytest.raises(AssertionError, match=found):
        check_weight_scores(criterion, toy_context("weights"))


@pytest.mark.parametrize("check", [check_criterion, check_weight_scores])
def test_an_unknown_name_is_told_the_near_miss(check: Callable[[str], None]):
    with pytest.raises(ValueError, match="did you mean obs"):
        check("obss")
