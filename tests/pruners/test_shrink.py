"""Cutting: the shrunk network computes what the masked one does, and costs what the cost model says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from secateur.networks import ChannelPad
from secateur.pruners.channels.shrink import mask, narrow, shrink
from secateur.pruners.channels.slices import ChannelStructure, Selection

CASES = pytest.mark.parametrize(("name", "cut"), zoo.cases())
EVERY = pytest.mark.parametrize("name", zoo.ZOO)
SEEDS = st.integers(0, 2**32 - 1)


def assert_agree(model: nn.Module, structure: ChannelStructure, selection: Selection, x: torch.Tensor) -> nn.Module:
    small = shrink(model, structure, selection)
    with torch.no_grad():
        expected, actual = mask(model, structure, selection)(x), small(x)
        assert actual.shape == model(x).shape
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    return small


@CASES
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_masked_and_shrunk_networks_agree(name: str, cut: str, seed: int) -> None:
    model, structure = zoo.make(name, seed % 7), zoo.structure(name, cut)
    assert_agree(model, structure, zoo.draw(structure, seed), zoo.images(name, 2, seed % 5))


@CASES
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_cost_is_that_of_the_shrunk_network(name: str, cut: str, seed: int) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    selection = zoo.draw(structure, seed)
    small = shrink(model, structure, selection)
    kept = zoo.kept_of(selection)
    assert structure.cost("flops", kept) == zoo.flops_counted(small, zoo.ZOO[name].shape)
    assert structure.cost("params", kept) == sum(p.numel() for p in small.parameters())


@CASES
def test_dense_cost(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    assert structure.cost("flops", structure.units) == zoo.flops_counted(model, zoo.ZOO[name].shape)
    assert structure.cost("params", structure.units) == sum(p.numel() for p in model.parameters())
    assert structure.fraction("flops", structure.units) == structure.fraction("params", structure.units) == 1.0
    assert structure.relaxed_cost("flops", structure.units.astype(float)) == structure.cost("flops", structure.units)


@CASES
def test_a_single_unit_of_every_layer_is_enough(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    for last in (False, True):
        selection = [np.array([layer.units - 1 if last else 0]) for layer in structure.layers]
        assert_agree(model, structure, selection, zoo.images(name, 2))


@CASES
def test_keeping_everything_changes_nothing(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    for change in (shrink, mask):
        zoo.assert_same_network(change(model, structure, zoo.whole(structure)), model, zoo.images(name, 3))
    small = shrink(model, structure, zoo.whole(structure))
    for module in small.modules():
        assert not isinstance(module, ChannelPad) or module.intact


@CASES
def test_the_dense_network_is_untouched(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    model.train()
    next(iter(model.children())).eval()
    before = copy.deepcopy(model)
    for change in (shrink, mask):
        small = change(model, structure, zoo.draw(structure, 3))
        modes = {n: m.training for n, m in before.named_modules()}
        assert {n: m.training for n, m in small.named_modules() if n in modes} == modes
        for buffer in small.buffers():
            buffer.add_(1)  # batch-norm statistics are re-estimated in place
        small.eval()
    assert {n: m.training for n, m in model.named_modules()} == {n: m.training for n, m in before.named_modules()}
    for key, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@EVERY
def test_modules_tell_their_new_sizes(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, "all")
    selection = zoo.draw(structure, 11)
    small = shrink(model, structure, selection)
    for module in small.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            rebuilt = type(module)(
                module.in_channels, module.out_channels, module.kernel_size, groups=module.groups, bias=False
            )
            assert module.weight.shape == rebuilt.weight.shape
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert len(module.running_mean) == len(module.running_var) == module.num_features
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)


@pytest.mark.parametrize(
    ("name", "conv", "layer", "keep", "groups", "rows"),
    [
        # heads: each has a group for its queries, one for its keys and one for its values, of two channels each
        ("scales", "mix", "qkv", [0, 2], 6, [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]),
        ("scales", "far", "qkv", [0, 2], 12, [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]),
        ("whole_groups", "2", "0", [1, 2], 2, [3, 4, 5, 6, 7, 8]),
        ("whole_groups", "4", "0", [1, 2], 2, [3, 4, 5, 6, 7, 8]),  # transposed: rows are of the twelve inputs
        ("grouped", "1.0", "1.0", [0, 3], 2, [0, 3, 4, 7, 8, 11, 12, 15]),  # a unit lies in every group of the next
    ],
)
def test_a_grouped_convolution_loses_groups_or_places_of_each(
    name: str, conv: str, layer: str, keep: list[int], groups: int, rows: list[int]
) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    selection = zoo.whole(structure)
    selection[structure.index(layer)] = np.array(keep)
    whole, small = model.get_submodule(conv), shrink(model, structure, selection).get_submodule(conv)
    assert small.groups == groups
    assert torch.equal(small.weight, whole.weight[rows])
    assert small.in_channels * whole.groups == whole.in_channels * groups


def test_a_shrunk_network_trains_and_keeps_requires_grad() -> None:
    model, structure = zoo.make("residual"), zoo.structure("residual")
    model.conv1.weight.requires_grad_(False)
    model.layer1[0].conv1.weight.requires_grad_(False)
    small = copy.deepcopy(shrink(model, structure, zoo.draw(structure, 0))).train()
    small(zoo.images("residual", 4)).square().sum().backward()
    frozen = {name for name, p in small.named_parameters() if p.grad is None}
    assert frozen == {"conv1.weight", "layer1.0.conv1.weight"}


def test_unchanged_parameters_are_shared() -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    selection = [np.array([0, 3]), np.arange(6), np.arange(10)]
    small = shrink(model, structure, selection)
    assert small[7].weight.data_ptr() == model[7].weight.data_ptr()
    assert small[2][0].weight.shape == (6, 2, 3, 3)
    assert torch.equal(small[2][0].weight, model[2][0].weight[:, [0, 3]])
    assert torch.equal(small[0][1].running_var, model[0][1].running_var[[0, 3]])


def test_a_removed_channel_does_not_pass_from_trunk_to_trunk() -> None:
    # conv1's trunk stays; of layer2's trunk channel 2 goes, which the shortcut copies on to layer3's
    model, structure = zoo.make("residual"), zoo.structure("residual", "all")
    selection = zoo.whole(structure)
    selection[structure.index("layer2.0.conv2")] = np.array([0, 1, 3, 4, 5])
    x = zoo.images("residual", 2)
    small = assert_agree(model, structure, selection, x)
    assert small.layer3[0].shortcut.source.tolist() == [-1, 0, 1, -1, 2, 3, 4, -1]
    with torch.no_grad():
        assert not torch.allclose(small(x), model(x), atol=1e-3)


@CASES
def test_a_shrunk_network_is_rebuilt_from_its_positions_and_its_state(name: str, cut: str) -> None:
    structure = zoo.structure(name, cut)
    selection = zoo.draw(structure, 5)
    small = shrink(zoo.make(name), structure, selection)
    rebuilt = narrow(zoo.make(name, seed=1), structure.positions(selection))
    rebuilt.load_state_dict(small.state_dict())
    zoo.assert_same_network(rebuilt, small, zoo.images(name, 2))


def test_sampling_leaves_the_trunk_whole() -> None:
    model, structure = zoo.make("residual"), zoo.structure("residual", "sampled")
    selection = [np.arange(1) if layer.sampled else np.arange(layer.units) for layer in structure.layers]
    small = shrink(model, structure, selection)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    changed = {name for name, p in small.named_parameters() if tuple(p.shape) != shapes[name]}
    assert changed == {f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3)}
    assert small.get_parameter("layer3.0.conv1.weight").shape == (8, 1, 3, 3)
