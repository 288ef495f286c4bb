"""A network is taken out of what it is wrapped in; what cannot be pruned is told in a line with the call that helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur
import zoo
from secateur.networks.checks import check_weights, unwrapped
from secateur.pruners.structure import Structure

CONFIG = secateur.Config.model_validate({"name": "mine", "budget": {"flops": 0.5}})


def structure_of(model: nn.Module) -> Structure:
    batches = zoo.batches("vgg", (8, 8))
    images = secateur.Images(calibration=batches, search=batches)
    return secateur.Session(CONFIG, model=model, images=images).structure


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))], ids=["1", "2", "3"]
)
def test_wrapped_networks_have_the_layers_of_what_is_inside(wrap) -> None:
    model = zoo.make("vgg")
    assert unwrapped(wrap(model)) is model
    assert structure_of(wrap(model)).fingerprint == structure_of(model).fingerprint


@pytest.mark.filterwarnings("ignore")  # of torch, that some of this will go
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: torch.jit.trace(model, torch.zeros(2, *zoo.RGB)), "pass the module that it was made from"),
        (lambda model: model.half(), r"0.0.weight is float16: call network.float\(\) first"),
        (lambda model: model.bfloat16(), "is bfloat16"),
        (lambda model: model.double(), "is float64"),
        (lambda model: model.to("meta"), "load weights first"),
        (lambda model: nn.Sequential(*model, torch.ao.nn.quantized.Linear(5, 5)), "prune first, then quantise"),
    ],
)
def test_what_cannot_be_pruned_is_told(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weights(change(zoo.make("vgg")))
    with pytest.raises(ValueError, match=message):
        structure_of(change(zoo.make("vgg")))
