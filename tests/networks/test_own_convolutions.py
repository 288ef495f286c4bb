"""Convolutions with a forward of their own: the same function, of a weight and an input that can be told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from secateur.networks.graph import trace
from secateur.networks.opened import opened
from secateur.networks.own_convolutions import SameConv2d
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.shrink import mask, shrink
from secateur.pruners.repair.sequential import SequentialRepair


class Standardised(nn.Conv1d):
    """As timm's StdConv2d, in one dimension, with a gain."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.weight.mean((1, 2), keepdim=True), self.weight.std((1, 2), keepdim=True)
        weight = self.gain * (self.weight - mean) / spread
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByInput(nn.Conv1d):
    """A weight that depends on the input: no plain convolution computes the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight * x.mean(), self.bias)


class Activated(nn.Conv1d):
    """A convolution, and something more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False, "dilation": 2}])
def test_a_standardised_weight_becomes_a_plain_one(settings: dict[str, Any]) -> None:
    theirs = nn.Sequential(Standardised(4, 6, 3, **settings)).eval()
    ours = opened(copy.deepcopy(theirs))
    assert type(ours[0]) is nn.Conv1d
    assert set(ours.state_dict()) == set(theirs.state_dict()) - {"0.gain"}
    x = torch.randn(2, 4, 11)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", [ByInput, Activated])
def test_what_no_plain_convolution_computes_is_left_alone(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(4, 6, 3))
    assert type(opened(model)[0]) is kind


def test_one_that_stands_in_two_places_stays_one() -> None:
    shared = Standardised(4, 4, 3, padding=1)
    ours = opened(nn.Sequential(shared, nn.ReLU(), shared))
    assert ours[0] is ours[2]
    assert type(ours[0]) is nn.Conv1d


@pytest.mark.parametrize("size", [7, 8, 9, 10])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 3, 1), (2, 1, 1), (3, 2, 2), (1, 2, 1)])
def test_it_pads_as_tensorflow_does(size: int, kernel: int, stride: int, dilation: int) -> None:
    timm = pytest.importorskip("timm.layers.conv2d_same")
    theirs = timm.Conv2dSame(3, 4, kernel, stride, dilation=dilation)
    ours = opened(nn.Sequential(copy.deepcopy(theirs)))[0]
    x = torch.randn(2, 3, size, size + 1)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("StdConv2d", {"stride": 2}), ("StdConv2dSame", {"stride": 2}), ("ScaledStdConv2dSame", {"stride": 2})],
)
def test_a_network_of_them_is_cut_and_repaired_in_sequence(kind: str, settings: dict[str, Any]) -> None:
    made = getattr(pytest.importorskip("timm.layers.std_conv"), kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.ReLU() if i % 2 else made(*((3, 8) if not i else (8, 8)), 3, **settings) for i in range(4)]
        theirs = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, zoo.CLASSES)).eval()
    ours = opened(copy.deepcopy(theirs))
    x = zoo.images("vgg", 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert all(isinstance(ours[i], SameConv2d) == ("Same" in kind) for i in (0, 2))
    assert {str(node.target) for node in trace(ours, x[:1]).nodes if node.op == "call_module"} >= {"0", "2", "5"}
    structure = find_layers(ours, zoo.RGB)
    assert [layer.name for layer in structure.layers] == ["0", "2"]
    selection = zoo.draw(structure, 1)
    with torch.no_grad():
        torch.testing.assert_close(shrink(ours, structure, selection)(x), mask(ours, structure, selection)(x))
    compressed = zoo.cut_channels(ours, structure, selection)
    before = compressed.model(x).detach()
    SequentialRepair(ours, [(x, torch.zeros(len(x)))])(compressed)
    wanted = ours(x).detach()
    assert (compressed.model(x) - wanted).square().sum() < 0.9 * (before - wanted).square().sum()
