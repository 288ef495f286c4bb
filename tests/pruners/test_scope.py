"""What the config says of layers: left whole, tied, and which numbers of units may be kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import zoo
from secateur.pruners.budget import Budget
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.method import cut
from secateur.pruners.channels.shrink import mask
from secateur.pruners.channels.slices import ChannelStructure
from secateur.pruners.scope import choices_of
from secateur.pruners.structure import Layer, PlanError


def found(name: str, **layers: Any) -> ChannelStructure:
    return find_layers(zoo.make(name), zoo.ZOO[name].shape, **layers)


def names(structure: ChannelStructure) -> list[str]:
    return [layer.name for layer in structure.layers]


@pytest.mark.parametrize(("units", "step"), [(16, 4), (10, 4), (3, 8), (8, 8), (7, 1)])
def test_choices_are_the_multiples_and_all(units: int, step: int) -> None:
    choices = choices_of("x", units, step)
    assert set(choices) == {n for n in range(1, units + 1) if n % step == 0 or n == units}
    assert list(choices) == sorted(set(choices))


def test_round_to_is_for_all_or_by_pattern_and_the_last_counts() -> None:
    assert [layer.choices for layer in found("vgg", round_to=4).layers] == [(4, 8), (4, 6), (4, 8, 10)]
    by_pattern = found("resnet20", round_to={"layer*": 8, "layer3.*": 16, "layer1.0.conv1": 5})
    levels = {layer.name: layer.choices for layer in by_pattern.layers}
    assert levels["layer1.0.conv1"] == (5, 10, 15, 16)
    assert levels["layer1.1.conv1"] == (8, 16)
    assert levels["layer2.0.conv1"] == (8, 16, 24, 32)
    assert levels["layer3.2.conv1"] == (16, 32, 48, 64)
    plain = found("vgg", round_to={"nothing*": 8})
    assert [layer.choices[:3] for layer in plain.layers] == [(1, 2, 3)] * 3


def test_plans_of_rounded_layers_are_rounded() -> None:
    budget = Budget(found("resnet20", round_to=8), "flops", 0.5)
    kept = budget.fill(np.linspace(1.0, 3.0, 9))
    assert np.all(kept % 8 == 0)
    assert 0.35 < budget.structure.fraction("flops", kept) <= 0.5


@pytest.mark.parametrize(
    "choices", [(2, 1, 4), (1, 1, 4), (1, 2, 3), (-1, 4), (1, 5)], ids=lambda choices: str(choices)
)
def test_choices_that_do_not_rise_to_the_units_are_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="layer x: choices must rise from 0 or more to its 4 units"):
        Layer("x", 4, choices)


@pytest.mark.parametrize(
    ("name", "ignore", "left"),
    [
        ("vgg", ["2.0"], ["0.0", "5"]),
        ("vgg", ["Linear"], ["0.0", "2.0"]),
        ("vgg", ["?.0"], ["5"]),
        ("vgg", ["[02].0", "5"], None),
        ("vgg", ["[02].0", "7"], ["5"]),  # 7 is the output, and left whole anyway
        ("residual", ["layer[12].*"], ["layer3.0.conv1"]),
        ("downsample", ["BasicBlock"], None),  # every layer lies within one
        ("inverted", ["InvertedResidual"], ["0.0"]),
    ],
)
def test_layers_are_ignored_by_name_by_pattern_and_by_type(
    name: str, ignore: list[str], left: list[str] | None
) -> None:
    if left is None:
        with pytest.raises(PlanError, match=r"is no layer here|nothing in this network can be cut"):
            found(name, ignore=ignore)
        return
    structure = found(name, ignore=ignore)
    assert names(structure) == left
    for layer in set(names(found(name))) - set(left):
        assert structure.ignored[layer] == "excluded by the config"


def test_a_producer_of_a_trunk_may_be_named() -> None:
    assert "conv1" not in names(found("residual", cut="all", ignore=["layer1.0.conv2"]))


@pytest.mark.parametrize(("pattern", "near"), [("2.1", "2.0"), ("Liner", "Linear"), ("Conv2", "Conv2d")])
def test_what_fits_nothing_names_the_near_miss(pattern: str, near: str) -> None:
    message = rf"layers.ignore names '{pattern}', which is no layer here, nor a module's type – did you mean {near}\?"
    with pytest.raises(PlanError, match=message):
        found("plain_bias" if pattern == "Conv2" else "vgg", ignore=[pattern])


def test_tied_layers_are_one_and_lose_the_same_units() -> None:
    structure = found("resnet20", tie=[["layer1.*"], ["layer3.0.conv1", "layer3.2.conv1"]])
    assert names(structure) == [
        *("layer1.0.conv1", "layer2.0.conv1", "layer2.1.conv1", "layer2.2.conv1"),
        *("layer3.0.conv1", "layer3.1.conv1"),
    ]
    assert structure.layers[0].producers == [f"layer1.{block}.conv1" for block in range(3)]
    model = zoo.make("resnet20")
    selection = zoo.draw(structure, 4)
    small = cut(model, structure, selection).model
    for block in range(3):
        expected = model.get_parameter(f"layer1.{block}.conv1.weight")[torch.from_numpy(selection[0])]
        assert torch.equal(small.get_parameter(f"layer1.{block}.conv1.weight"), expected)
    x = zoo.images("resnet20", 2)
    with torch.no_grad():
        torch.testing.assert_close(small(x), mask(model, structure, selection)(x), rtol=1e-4, atol=1e-4)
    assert structure.cost("params", zoo.kept_of(selection)) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        ([["layer1.*", "layer4.*"]], r"layers.tie names 'layer4.\*', which is no layer here"),
        ([["layer1.0.conv"]], r"layers.tie names 'layer1.0.conv', .* – did you mean layer1.0.conv1\?"),
        ([["layer1.*"], ["layer1.0.conv1", "layer1.1.conv1"]], r"layers.tie has 'layer1.0.conv1' in two groups"),
        ([["layer1.0.conv1", "layer2.0.conv1"]], r"layer1.0.conv1 has 16 units and layer2.0.conv1 32"),
    ],
)
def test_ties_that_cannot_be_are_refused(tie: list[list[str]], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        found("resnet20", tie=tie)
