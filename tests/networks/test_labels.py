"""Labels follow channels: where they go is where elements go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from secateur.networks.graph import UntraceableError, Walk, trace
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.shrink import mask, shrink


class Between(nn.Module):
    """Two convolutions, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 8, taken: int = 8) -> None:
        super().__init__()
        self.between = between
        self.first, self.last, self.head = zoo.conv_bn(3, width), zoo.conv_bn(taken, 6), zoo.Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self.first(x))))


CUT = {  # what is between → units of the first layer, and inputs of the last
    "flip": (lambda x: x.flip(1), 8, 8),
    "roll": (lambda x: x.roll(3, 1), None, 8),
    "twice": (lambda x: torch.cat([x, x], 1), 8, 16),
    "interleaved": (lambda x: x.repeat_interleave(2, 1), 8, 16),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1), 8, 16),
    "swapped halves": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4, 8),
    "gated halves": (lambda x: F.glu(x, 1), 4, 4),
    "halves multiplied": (lambda x: torch.mul(*x.chunk(2, 1)), 4, 4),
    "shuffled": (lambda x: F.channel_shuffle(x, 2), 4, 8),
    "pixels": (lambda x: F.pixel_shuffle(x, 2), 2, 2),
    "places to channels": (lambda x: F.pixel_unshuffle(x, 2), 8, 32),
    "padded": (lambda x: F.pad(x, (1, 1, 1, 1), value=3.0), 8, 8),
    "padded and shuffled": (lambda x: F.channel_shuffle(F.pad(x, (1, 1, 1, 1), value=3.0), 2), 4, 8),
    "padded and halved": (lambda x: torch.cat(F.pad(x, (1, 0, 0, 1)).chunk(2, 1)[::-1], 1), 4, 8),
    "a part of a mask": (lambda x: x * (torch.arange(9).view(3, 3) > 3)[:1, :1], 8, 8),
    "reflected": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 8, 8),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape), 8, 8),
    "gate of all places": (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 8, 8),
    "soft over places": (lambda x: x.flatten(2).softmax(-1).reshape(x.shape), 8, 8),
    "enlarged": (lambda x: F.interpolate(x, scale_factor=2), 8, 8),
    "written over": (lambda x: torch.zeros_like(x).index_copy(1, torch.arange(8), x), None, 8),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), None, 8),
    "soft over channels": (lambda x: x.softmax(1), None, 8),
    "sorted": (lambda x: x.sort(1).values, None, 8),
    "a fixed part": (lambda x: x[:, :5], None, 5),
    "its own matrix": (lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8)), None, 8),
    "numpy": (lambda x: torch.from_numpy(x.numpy().copy()), None, 8),
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_between_two_layers(name: str) -> None:
    """Cut rightly, or left whole: never cut wrongly, whatever it is."""
    between, units, taken = CUT[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Between(between, taken=taken).eval()
        zoo.scramble(model)
    structure = find_layers(model, zoo.RGB)
    assert {layer.name: layer.units for layer in structure.layers}.get("first.0") == units
    assert (units is None) == ("first.0" in structure.ignored)
    assert "last.0" in {layer.name for layer in structure.layers}
    with torch.no_grad():
        x, selection = zoo.images("vgg", 3), zoo.draw(structure, 1)
        torch.testing.assert_close(
            shrink(model, structure, selection)(x), mask(model, structure, selection)(x), rtol=1e-4, atol=1e-5
        )


@settings(deadline=None, max_examples=10)
@given(st.lists(st.sampled_from([n for n, (_, units, taken) in CUT.items() if units and taken == 8]), max_size=4))
def test_whatever_comes_after_one_another(names: list[str]) -> None:
    def between(x: Tensor) -> Tensor:
        for name in names:
            x = CUT[name][0](x)
        return x

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Between(between).eval()
        zoo.scramble(model)
    structure = find_layers(model, zoo.RGB)
    assert "first.0" in {layer.name for layer in structure.layers} | set(structure.ignored)
    reasons = structure.ignored.values()
    assert not any("agree" in reason or "does not give" in reason for reason in reasons)


class Looping(nn.Module):
    """Its way depends on the form of what it is given, and on nothing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(2, 2, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 6 or x.dim() != 4:
            raise ValueError
        found = [part(some) for part, some in zip(self.parts, x.split(2, 1), strict=True)]
        for i in range(x.shape[1]):
            found.append(x[:, i : i + 1])
        return torch.cat(found, 1).flatten(1)


class Counting(nn.Module):
    """Works on as many images as it was traced with, and no others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, 2).expand(len(x), -1), x.flatten(1)], 1)


def test_a_trace_takes_the_way_that_images_of_this_form_take() -> None:
    model, x = Looping().eval(), torch.randn(5, 6, 4, 4)
    with torch.no_grad():
        graph = trace(model, x[:1])
        torch.testing.assert_close(Walk(graph, model, [x]).result()[0], model(x))


def test_a_trace_that_holds_for_one_number_of_images_alone_is_none() -> None:
    with pytest.raises(UntraceableError, match="how many images"):
        trace(Counting().eval(), torch.randn(1, 6, 4, 4))


class InPlace(nn.Module):
    """What it changes in place goes on under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2.0
        old = x
        x.mul_(3.0)
        x.add_(1.0)
        self.relu(x)
        F.hardtanh(old, -1.0, 4.0, inplace=True)
        return torch.cat([old.flatten(1), x.exp().flatten(1)], 1)


def test_a_trace_follows_what_is_changed_in_place() -> None:
    model, x = InPlace().eval(), torch.randn(5, 6, 4, 4)
    with torch.no_grad():
        graph = trace(model, x[:1])
        torch.testing.assert_close(Walk(graph, model, [x]).result()[0], model(x))


class OnDevice(nn.Module):
    """Asks where its input lies, and of what type it is."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            mean = x.double().mean((2, 3)).to(x.dtype)
        return mean if x.device.type != "meta" else mean * 2.0


def test_a_trace_knows_device_and_type() -> None:
    model, x = OnDevice().eval(), torch.randn(5, 6, 4, 4)
    graph = trace(model, x[:1])
    torch.testing.assert_close(Walk(graph, model, [x]).result()[0], x.mean((2, 3)))


class OwnLinear(nn.Linear):
    """As timm's: a forward of its own, which says the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def test_a_linear_layer_of_ones_own_is_one_node() -> None:
    model = nn.Sequential(nn.Flatten(), OwnLinear(96, 5), nn.ReLU(), OwnLinear(5, 4)).eval()
    graph = trace(model, torch.randn(1, 6, 4, 4))
    assert [str(node.target) for node in graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3"]
