"""Every method keeps the rules, and every rule catches who breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.configs.schema import LayersConfig
from secateur.pruners import METHODS, Compressed, Context, Layer, Structure
from secateur.pruners.structure import Kept
from secateur.pruners.weights import Weights
from secateur.testing import METHOD_RULES, check_method, toy_context, toy_images, toy_networks

NETWORK = "biases"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_rules(name: str):
    check_method(name)


@pytest.mark.parametrize(
    "name",
    [name if name in ("channels", "weights") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_rounded_choices_keep_them_too(name: str):
    check_method(name, config=LayersConfig(round_to=4))


@pytest.mark.parametrize("cut", ["sampled", "all"])
def test_channels_of_residual_trunks_keep_them_too(cut: str):
    model = toy_networks()["residual"]
    check_method("channels", model, toy_images(model), config=LayersConfig.model_validate({"cut": cut}))


def test_a_model_comes_with_its_images():
    with pytest.raises(ValueError, match="a model and its images, or neither"):
        check_method("weights", toy_networks()[NETWORK])
    model = toy_networks()[NETWORK]
    images = toy_images(model)
    with pytest.raises(ValueError, match=r"model\.eval\(\) first"):
        check_method("weights", model.train(), images)


@pytest.fixture
def known() -> Iterator[None]:
    """What a test registers is forgotten behind it."""
    before = dict(METHODS._known)
    yield
    METHODS._known.clear()
    METHODS._known.update(before)


def found(structure: Structure, **changes: Any) -> Structure:
    return replace(structure, **changes)


class Rising(Layer):
    """A layer that does not look at its own choices."""

    def __post_init__(self) -> None:
        pass


class Falls:
    """A cost that falls where more is kept."""

    def __call__(self, kept: Any) -> Any:
        return 1e6 - np.asarray(kept).sum(-1)


class Doubled:
    def __init__(self, cost: Callable[[Any], Any]):
        self.cost = cost

    def __call__(self, kept: Any) -> Any:
        return 2 * self.cost(kept)


class OneByOne:
    """A cost that knows one plan at a time."""

    def __init__(self, cost: Callable[[Any], Any]):
        self.cost = cost

    def __call__(self, kept: Any) -> Any:
        return float(np.sum(self.cost(np.asarray(kept))))


class Broken(Weights):
    name = "broken"


class NoCriterion(Broken):
    def check_criterion(self, name: str) -> None:
        pass


class Misnamed(Broken):
    def find(self, *args: Any) -> Structure:
        return found(super().find(*args), method="weights")


class TwoOfAName(Broken):
    def find(self, *args: Any) -> Structure:
        structure = super().find(*args)
        return found(structure, layers=(structure.layers[0], *structure.layers))


class StrangeConsumers(Broken):
    def find(self, *args: Any) -> Structure:
        structure = super().find(*args)
        return found(structure, layers=tuple(replace(layer, consumers=("nowhere",)) for layer in structure.layers))


class Deaf(Broken):
    def find(self, model: nn.Module, input_shape: Any, config: LayersConfig) -> Structure:
        return super().find(model, input_shape, config.model_copy(update={"ignore": []}))


class SilentlyIgnored(Broken):
    def find(self, *args: Any) -> Structure:
        return found(super().find(*args), ignored={})


class OddChoices(Broken):
    def find(self, *args: Any) -> Structure:
        structure = super().find(*args)
        first, *others = structure.layers
        odd = Rising(first.name, first.units, (first.units, 5, 3), first.members, first.parameters, first.consumers)
        return found(structure, layers=(odd, *others))


def costing(**costs: Callable[[Structure], Any]) -> type[Broken]:
    class Costing(Broken):
        def find(self, *args: Any) -> Structure:
            structure = super().find(*args)
            given = {**structure.costs, **{kind: make(structure) for kind, make in costs.items()}}
            return found(structure, costs={kind: cost for kind, cost in given.items() if cost is not None})

    return Costing


class NeverWhole(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        return super().apply(context, np.maximum(1, kept - 1))


class OtherMask(Broken):
    def masked(self, context: Context, kept: Kept) -> nn.Module:
        return super().masked(context, np.minimum(context.structure.units, kept + kept // 4 + 1))


class Dearer(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        compressed = super().apply(context, kept)
        more = nn.Linear(5, 5, bias=False)
        with torch.no_grad():
            more.weight.copy_(torch.eye(5))
        return replace(compressed, model=nn.Sequential(compressed.model, more).eval())


class Training(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        compressed = super().apply(context, kept)
        compressed.model.train()
        return compressed


class TooFewSizes(Broken):
    def sizes(self, context: Context, layer: Layer) -> Any:
        return super().sizes(context, layer)[1:]


def curving(change: Callable[[Any], Any]) -> type[Broken]:
    class Curving(Broken):
        def curves(self, context: Context) -> list[Any]:
            return [change(curve.copy()) for curve in super().curves(context)]

    return Curving


def telling(change: Callable[[dict[str, float]], Mapping[str, float]]) -> type[Broken]:
    class Telling(Broken):
        def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
            return change(dict(super().features(context, layer)))

    return Telling


class TupleRecipe(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        return replace(super().apply(context, kept), recipe={"masked": ("a", "tuple")})


class ArrayRecipe(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        return replace(super().apply(context, kept), recipe={"masked": kept})


class OtherArchitecture(Broken):
    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(super().rebuild(model, recipe))


class Gullible(Broken):
    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        return model


class Unrepaired(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        return replace(super().apply(context, kept), solve=lambda _name, _gram, cross, _ridge: cross * float("nan"))


class Refilled(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        return replace(super().apply(context, kept), solve=None)


class InPlace(Broken):
    def apply(self, context: Context, kept: Kept) -> Compressed:
        with torch.no_grad():
            next(context.model.parameters()).mul_(0.5)
        return super().apply(context, kept)


class LeftTraining(Broken):
    def sizes(self, context: Context, layer: Layer) -> Any:
        context.model.train()
        return super().sizes(context, layer)


class LeftHooks(Broken):
    def curves(self, context: Context) -> list[Any]:
        context.model.register_forward_hook(lambda *_: None)
        return super().curves(context)


BREAKERS: list[tuple[str, type[Broken], str]] = [
    ("criterion", NoCriterion, "raised no ValueError"),
    ("find", Misnamed, "found by 'weights'"),
    ("find", TwoOfAName, "two layers bear one name"),
    ("find", StrangeConsumers, "are no modules"),
    ("ignore", Deaf, "leaves it in"),
    ("ignore", SilentlyIgnored, "does not say why"),
    ("choices", OddChoices, "do not end in"),
    ("costs", costing(params=lambda _s: None), "no params among its costs"),
    ("costs", costing(size=lambda _s: Falls()), "size falls where"),
    ("costs", costing(flops=lambda s: OneByOne(s.costs["flops"])), "not \\(plans,\\)"),
    ("counts", costing(flops=lambda s: Doubled(s.costs["flops"])), "flops: the dense network costs"),
    ("whole", NeverWhole, "all units kept"),
    ("oracle", OtherMask, "apply against masked"),
    ("oracle", Training, "not in eval mode"),
    ("no dearer", Dearer, "multiply-accumulates"),
    ("sizes", TooFewSizes, "for 144 units|for 162 units"),
    ("curves", curving(lambda curve: curve[::-1]), "does not end in 0"),
    ("curves", curving(lambda curve: curve[1:]), "choices"),
    ("curves", curving(lambda curve: curve * 3), "is not within"),
    ("features", telling(lambda told: {**told, "colour": 1.0}), "colour"),
    ("features", telling(lambda told: {k: v for k, v in told.items() if k != "kernel"}), "kernel.* missing"),
    ("deterministic", curving(lambda curve: curve * np.random.uniform(0.5, 1.0)), "draw from context.seed"),
    ("recipe", TupleRecipe, "on its way through JSON"),
    ("recipe", ArrayRecipe, "not JSON serializable"),
    ("recipe", OtherArchitecture, "RuntimeError|ValueError"),
    ("recipe", Gullible, "took a recipe that is not its own"),
    ("repair", Unrepaired, "not finite"),
    ("repair", Refilled, "left the method's form"),
    ("untouched", InPlace, "copy before you change"),
    ("untouched", LeftTraining, "training mode"),
    ("untouched", LeftHooks, "keep hooks"),
]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("rule", "method", "found"), BREAKERS, ids=lambda value: getattr(value, "__name__", value))
def test_who_breaks_a_rule_is_told_which(rule: str, method: type[Broken], found: str):
    METHODS.register("broken")(method())
    model = toy_networks()[NETWORK]
    with pytest.raises(
        AssertionError, match=f"(?s)method broken, network Sequential, breaks the rule '{rule}'.*({found})"
    ):
        check_method("broken", model, toy_images(model))


def test_every_rule_is_broken_by_someone():
    assert {rule for rule, _, _ in BREAKERS} == {*METHOD_RULES, "untouched"}


@pytest.mark.usefixtures("known")
def test_a_method_is_registered_under_its_own_name():
    with pytest.raises(AssertionError, match=r"rule 'registered'.*METHODS\.register"):
        check_method(Broken())
    with pytest.raises(AssertionError, match=r"rule 'registered'.*knows no 'nothing'"):
        check_method("nothing")
    greedy = Broken()
    greedy.max_sparsity = 1.0
    METHODS.register("broken")(greedy)
    with pytest.raises(AssertionError, match=r"rule 'registered'.*max_sparsity = 1\.0"):
        check_method(greedy)


def test_toys_are_the_same_every_time_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = toy_networks(), toy_networks()
    assert torch.equal(torch.rand(2), expected)
    for name, network in first.items():
        x = toy_images(network)[0][0]
        assert torch.equal(network(x), second[name](x)), name
        assert len(network(x)[0].unique()) > 1, f"{name} answers with a constant"


def test_a_context_of_a_toy_knows_its_method():
    context = toy_context("weights", "plain")
    assert context.method is METHODS["weights"]
    assert [layer.name for layer in context.structure.layers] == ["0.0.weight", "1.0.weight", "2.2.weight"]
