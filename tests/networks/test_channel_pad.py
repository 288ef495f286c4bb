"""The option-A shortcut: what it computes whole, and that cutting it only leaves channels out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from secateur.networks import ChannelPad, CifarResNet, digits_resnet


def kept(channels: int) -> st.SearchStrategy[list[int] | None]:
    """Some channels, in any order; or none given, for all."""
    some = st.lists(st.integers(0, channels - 1), min_size=1, max_size=channels, unique=True)
    return st.none() | some


def tensor(indices: list[int] | None) -> Tensor | None:
    return None if indices is None else torch.tensor(indices)


def test_intact_pads_half_in_front_and_half_behind() -> None:
    x = torch.randn(2, 3, 5, 5)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
    assert torch.equal(ChannelPad(3, 8, 2)(x), expected)


def test_source_names_the_copied_channel() -> None:
    assert ChannelPad(3, 8, 2).source.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1]


def test_state_is_empty_until_cut() -> None:
    pad = ChannelPad(4, 8, 2)
    assert list(pad.state_dict()) == []
    pad.select(torch.tensor([0, 2]), None)
    assert list(pad.state_dict()) == ["source"]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), stride=st.integers(1, 3), channels=st.integers(1, 6), extra=st.integers(0, 6))
def test_cut_equals_intact_with_zeroed_inputs(data: st.DataObject, stride: int, channels: int, extra: int) -> None:
    intact = ChannelPad(channels, channels + extra, stride)
    keep_in = data.draw(kept(channels))
    keep_out = data.draw(kept(channels + extra))
    cut = copy.deepcopy(intact)
    cut.select(tensor(keep_in), tensor(keep_out))

    x = torch.randn(2, channels, 4, 5)
    inputs = list(range(channels)) if keep_in is None else keep_in
    outputs = list(range(channels + extra)) if keep_out is None else keep_out
    zeroed = torch.zeros_like(x)
    zeroed[:, inputs] = x[:, inputs]

    assert torch.equal(cut(x[:, inputs]), intact(zeroed)[:, outputs])
    assert (cut.in_channels, cut.out_channels, cut.stride) == (len(inputs), len(outputs), stride)


def test_cuts_add_up() -> None:
    twice, once = ChannelPad(4, 8, 1), ChannelPad(4, 8, 1)
    twice.select(torch.tensor([0, 1, 3]), torch.tensor([1, 2, 3, 5]))
    twice.select(torch.tensor([0, 2]), torch.tensor([1, 2, 3]))
    once.select(torch.tensor([0, 3]), torch.tensor([2, 3, 5]))
    assert torch.equal(twice.source, once.source)
    assert once.source.tolist() == [0, -1, 1]  # outputs 2, 3, 5 copied inputs 0, 1, 3; of these 1 is gone


def test_keeping_everything_leaves_it_intact() -> None:
    pad = ChannelPad(2, 4, 2)
    pad.select(torch.arange(2), torch.arange(4))
    pad.select(None, None)
    assert pad.intact
    assert not pad.state_dict()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "keep_out is empty"),
        ([0, 4], "keep_out names channel 4, of channels 0 to 3"),
        ([1, 1], "keep_out names a channel twice"),
        ([0.0], "1-D tensor of channel indices"),
        ([True, False, True, True], "1-D tensor of channel indices"),
        ([[0]], "1-D tensor of channel indices"),
    ],
)
def test_a_bad_selection_is_refused_and_cuts_nothing(keep: list[object], message: str) -> None:
    pad = ChannelPad(2, 4, 2)
    wrong = torch.tensor(keep) if keep else torch.tensor([], dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        pad.select(torch.tensor([1]), wrong)
    assert (pad.in_channels, pad.out_channels, pad.intact) == (2, 4, True)


def test_padding_cannot_remove_channels() -> None:
    with pytest.raises(ValueError, match="in_channels=4, out_channels=2"):
        ChannelPad(4, 2, 1)
    with pytest.raises(ValueError, match="stride=0"):
        ChannelPad(2, 2, 0)


def cut_stem(network: CifarResNet, keep: Tensor) -> CifarResNet:
    """The network with the stem's trunk narrowed to `keep`, by hand."""
    with torch.no_grad():
        for module in [network.conv1, network.layer1[0].conv2, network.layer1[1].conv2]:
            module.weight = torch.nn.Parameter(module.weight[keep])
        for module in [network.bn1, network.layer1[0].bn2, network.layer1[1].bn2]:
            for name in ("weight", "bias"):
                setattr(module, name, torch.nn.Parameter(getattr(module, name)[keep]))
            module.running_mean, module.running_var = module.running_mean[keep], module.running_var[keep]
        for module in [network.layer1[0].conv1, network.layer1[1].conv1, network.layer2[0].conv1]:
            module.weight = torch.nn.Parameter(module.weight[:, keep])
    network.layer2[0].shortcut.select(keep, None)
    return network


@pytest.mark.parametrize("cut", [False, True])
def test_traced_network_equals_eager(cut: bool) -> None:
    network = digits_resnet().eval()
    if cut:
        network = cut_stem(network, torch.tensor([0, 3, 4, 8, 15]))
    state = set(network.state_dict())
    traced = fx.symbolic_trace(network)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(traced(x), network(x))
    assert set(network.state_dict()) == state  # tracing leaves nothing behind


@pytest.mark.parametrize("cut", [False, True])
def test_traces_as_a_leaf_too(cut: bool) -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
            return isinstance(module, ChannelPad) or super().is_leaf_module(module, name)

    network = digits_resnet().eval()
    if cut:
        network = cut_stem(network, torch.tensor([1, 2]))
    graph = Tracer().trace(network)
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    assert [name for name in called if name.endswith("shortcut") and not name.startswith("layer1")] == [
        "layer2.0.shortcut",
        "layer2.1.shortcut",
        "layer3.0.shortcut",
        "layer3.1.shortcut",
    ]
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(fx.GraphModule(network, graph)(x), network(x))


def test_a_cut_state_loads_into_a_network_cut_to_the_same_widths() -> None:
    keep = torch.tensor([0, 3, 4])
    first, second = cut_stem(digits_resnet(), keep).eval(), cut_stem(digits_resnet(), torch.tensor([7, 8, 9])).eval()
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
