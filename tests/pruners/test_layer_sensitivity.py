"""What a layer's cut costs the network, predicted from the layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.configs.schema import Repair
from secateur.pruners.channels.criteria import elimination
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.loss_model import loss_curves
from secateur.pruners.repair import sensitivity as module
from secateur.pruners.repair.sensitivity import layer_sensitivity
from secateur.testing import toy_context


def context(name: str, cut: str = "inner", model: nn.Module | None = None) -> Context:
    return Context(model or zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


@pytest.mark.parametrize(("name", "cut"), [("residual", "inner"), ("residual", "sampled"), ("vgg", "inner")])
def test_curves_pass_through_what_was_measured(name: str, cut: str) -> None:
    """At half of each layer the prediction is the distance itself, by the compressor and a plain forward pass."""
    seen = context(name, cut)
    compressor, repair = Compressor(seen), Repair(kind="gram", guard=False)
    images = torch.cat([x for x, _ in seen.calibration])
    with torch.no_grad():
        dense = seen.model(images)
    for index, curve in enumerate(loss_curves(seen)):
        kept = seen.structure.units.copy()
        kept[index] //= 2
        with torch.no_grad():
            missed = (compressor(kept, repair)(images) - dense).square().sum(1).mean()
        assert curve[kept[index] - 1] == pytest.approx(float(missed / dense.var(0).sum()), rel=1e-3, abs=1e-9)


def test_ranks_are_measured_at_several_cuts() -> None:
    """Distance for lost output is another where many ranks are gone; the prediction is what each cut has shown."""
    seen = toy_context("lowrank", "plain")
    compressor, repair = Compressor(seen), Repair(kind="gram", guard=False)
    images = torch.cat([x for x, _ in seen.calibration])
    with torch.no_grad():
        dense = seen.model(images)
    passed, bends = 0, []
    for index, (curve, lost) in enumerate(zip(loss_curves(seen), seen.method.curves(seen), strict=True)):
        layer, slopes = seen.structure.layers[index], []
        for choice in sorted(set(module._choices(layer, lost))):
            kept = seen.structure.units.copy()
            kept[index] = layer.choices[choice]
            with torch.no_grad():
                missed = float((compressor(kept, repair)(images) - dense).square().sum(1).mean() / dense.var(0).sum())
            flat = choice > 0 and curve[choice] == curve[choice - 1] < missed  # more ranks have lost more
            assert flat or curve[choice] == pytest.approx(missed, rel=1e-3)
            passed += not flat
            slopes.append(missed / lost[choice])
        bends.append(max(slopes) / min(slopes))
    assert passed > len(bends)
    assert max(bends) > 1.2


def test_curves_fall_to_nothing() -> None:
    for curve, layer in zip(loss_curves(context("digits")), zoo.structure("digits").layers, strict=True):
        assert curve.shape == (layer.units,)
        assert np.all(np.diff(curve) <= 0.0)
        assert curve[-1] == 0.0 < curve[0]


def test_a_scale_of_the_logits_does_not_matter() -> None:
    louder = zoo.make("residual")
    assert isinstance(louder.linear, nn.Linear)
    with torch.no_grad():
        louder.linear.weight.mul_(7.0)
    assert layer_sensitivity(context("residual", model=louder)) == pytest.approx(
        layer_sensitivity(context("residual")), rel=1e-4
    )


def test_a_layer_nobody_listens_to_has_no_influence() -> None:
    deaf = zoo.make("residual")
    with torch.no_grad():
        norm = deaf.get_submodule("layer3.0.bn2")
        norm.weight.zero_()  # type: ignore[union-attr, operator]
    found = layer_sensitivity(context("residual", model=deaf))
    assert found[2] == pytest.approx(0.0, abs=1e-9)
    assert np.all(found[:2] > 1e-4)


def test_a_layer_whose_half_is_dead_is_measured_where_something_is_lost() -> None:
    model = zoo.make("plain_bias")
    with torch.no_grad():
        model.get_parameter("2.weight")[:, 2:].zero_()  # of its seven inputs two are used
    seen = context("plain_bias", model=model)
    errors = elimination(seen, seen.structure.layers[0]).errors
    assert errors[3] < module.LOST < errors[1]
    assert layer_sensitivity(seen)[0] > 1e-4


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = context("vgg")
    first = layer_sensitivity(seen)
    monkeypatch.setattr(module, "_cut_alone", lambda *_: pytest.fail("measured again"))
    assert np.array_equal(layer_sensitivity(seen), first)
