"""Sequential repair: every consumer fitted to what the pruned network computes, and to the sum it joins."""

from __future__ import annotations

import copy
import functools
import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import zoo
from secateur.networks.batches import with_images
from secateur.networks.norms import following_norms
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.method import cut as cut_channels
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.repair.sequential import HELD, REFIT_RIDGE, SequentialRepair, UntraceableError
from secateur.pruners.repair.solve import RIDGE, damping
from secateur.pruners.repair.statistics import Sampler

TRACEABLE = [case for case in zoo.small_cases() if zoo.ZOO[case[0]].traceable]
CASES = pytest.mark.parametrize(("name", "cut"), TRACEABLE)


def half(structure: ChannelStructure, seed: int = 0, sparsity: float = 0.5) -> Selection:
    """Random units of every layer, the same share of each."""
    rng = np.random.default_rng(seed)
    return [
        np.sort(rng.choice(layer.units, max(1, round((1 - sparsity) * layer.units)), replace=False))
        for layer in structure.layers
    ]


def repaired(
    model: nn.Module, structure: ChannelStructure, selection: Selection, batches: zoo.Batches, refit: bool = False
) -> nn.Module:
    compressed = cut_channels(model, structure, selection)
    zoo.repair_sequentially(compressed, model, batches, refit=refit)
    return compressed.model


def distance(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).square().sum(1).mean() / dense(x).var(0).sum())


def watch(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Module → its input and output, of one pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        seen[name] = inputs[0].clone(), output.clone()

    hooks = [m.register_forward_hook(functools.partial(record, name=n)) for n, m in model.named_modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def assert_fitted(
    module: nn.Module, old: nn.Module, x: Tensor, target: Tensor, intercept: Tensor | None, ridge: float = RIDGE
) -> None:
    """The module's weight is numpy's ridge regression from its inputs to the target.

    Args:
        module: after the repair.
        old: before it.
        x: what the repaired network hands it.
        target: what it should put out, before any intercept.
        intercept: what the repair put into the bias or in front of the batch norm, or none where there is no place.
        ridge: relative, the least.
    """
    sampler = Sampler(module, 10_000)
    inputs, outputs = sampler.inputs(x.double())[0].numpy(), sampler.outputs(target.double())[0].numpy()
    start = sampler.weight(old.weight.detach())[0].T.numpy()
    mean_x, mean_t = inputs.mean(0), outputs.mean(0)
    if intercept is None:
        mean_x, mean_t = 0 * mean_x, 0 * mean_t
    inputs, outputs = inputs - mean_x, outputs - mean_t
    ridge = damping(math.sqrt(len(inputs) * len(x)), inputs.shape[1], ridge)
    damp = np.sqrt(ridge * np.square(inputs).sum(0).mean()) * np.eye(inputs.shape[1])
    expected = np.linalg.lstsq(np.vstack([inputs, damp]), np.vstack([outputs, damp @ start]), rcond=None)[0]
    np.testing.assert_allclose(sampler.weight(module.weight.detach())[0].T.numpy(), expected, atol=5e-4)
    if intercept is not None:
        np.testing.assert_allclose(intercept.detach().numpy(), mean_t - mean_x @ expected, atol=2e-3)


def test_each_layer_is_fitted_to_the_pruned_networks_own_features() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, bias=False)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 10), nn.ReLU(), nn.Linear(10, 5)),
        ).eval()
        zoo.scramble(model)
    structure = find_layers(model, zoo.RGB)
    selection = half(structure)
    batches = zoo.batches("vgg", (100, 60))
    before = shrink(model, structure, selection)
    pruned = repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)

    outputs = torch.from_numpy(selection[1])
    shift = before[3].running_mean - pruned[3].running_mean
    assert_fitted(pruned[2], before[2], small["2"][0], dense["2"][1][:, outputs], shift)
    hidden = torch.from_numpy(selection[2])
    assert_fitted(pruned[6], before[6], small["6"][0], dense["6"][1][:, hidden], pruned[6].bias)
    assert_fitted(pruned[8], before[8], small["8"][0], dense["8"][1], pruned[8].bias)
    for unfitted in (0,):
        assert torch.equal(pruned[unfitted].weight, before[unfitted].weight)


@pytest.mark.parametrize(("name", "layers"), [("conv1d", "0 3 6 10"), ("conv3d", "0 2 6")])
def test_one_and_three_dimensions_are_fitted_like_two(name: str, layers: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    selection = half(structure)
    batches = zoo.batches(name, (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    outputs = [*map(torch.from_numpy, selection[1:]), torch.arange(zoo.CLASSES)]
    norms = following_norms(model, x[:2])
    for layer, left in zip(layers.split()[1:], outputs, strict=True):  # the first layer's inputs are the images
        fitted, old = pruned.get_submodule(layer), before.get_submodule(layer)
        constant = fitted.bias
        if layer in norms and constant is None:
            constant = before.get_submodule(norms[layer]).running_mean - pruned.get_submodule(norms[layer]).running_mean
        target = dense[layer][1].index_select(1, left)
        assert_fitted(fitted, old, small[layer][0], target, constant)
        assert (fitted.weight - old.weight).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "block", "shortcut"),
    [("residual", "layer2.0", "shortcut"), ("downsample", "block2", "downsample"), ("downsample", "block1", None)],
)
def test_the_sum_of_a_residual_block_is_what_is_fitted(name: str, block: str, shortcut: str | None) -> None:
    # Y₁ − Y₁′ + Y₂, in front of the batch norm: the shortcut's error over the batch norm's slope
    model, structure = zoo.make(name), zoo.structure(name)
    selection = half(structure, seed=1)
    batches = zoo.batches(name, (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    norm = before.get_submodule(f"{block}.bn2")
    slope = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().reshape(1, -1, 1, 1)
    path = f"{block}.{shortcut}" if shortcut else block
    error = dense[path][int(shortcut is not None)] - small[path][int(shortcut is not None)]
    assert (name == "downsample" and block == "block1") or error.abs().max() > 1e-2
    target = dense[f"{block}.conv2"][1] + error / slope
    assert_fitted(
        pruned.get_submodule(f"{block}.conv2"),
        before.get_submodule(f"{block}.conv2"),
        small[f"{block}.conv2"][0],
        target,
        norm.running_mean - pruned.get_submodule(f"{block}.bn2").running_mean,
    )


def test_the_sum_is_fitted_where_there_is_no_batch_norm() -> None:
    model, structure = zoo.make("scaled"), zoo.structure("scaled", "all")
    selection = half(structure, seed=1)
    batches = zoo.batches("scaled", (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    trunk = torch.from_numpy(selection[structure.index("stem.0")])
    error = dense["stem"][1][:, trunk] - small["stem"][1]
    target = dense["conv2"][1][:, trunk] + error
    assert error.abs().max() == 0.0  # nothing in front of the stem is cut: its channels are the dense ones
    assert_fitted(pruned.conv2, before.conv2, small["conv2"][0], target, pruned.conv2.bias)


class Three(nn.Module):
    """A sum of three, one after the other, as RepVGG's: the one that is fitted, one beside it, and the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.inner, self.last = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 8, 1)
        self.head = zoo.Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(F.relu(self.stem(x))))
        return self.head(self.last(F.relu(self.inner(x))) + self.side(x) + x)


def test_a_sum_of_three_is_fitted_as_a_whole() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Three().eval()
    structure = find_layers(model, zoo.RGB)
    assert [layer.name for layer in structure.layers] == ["stem", "inner"]
    selection = half(structure)
    batches = zoo.batches("vgg", (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    errors = [dense["side"][1] - small["side"][1], dense["side"][0] - small["side"][0]]
    assert all(error.abs().max() > 1e-2 for error in errors)
    assert_fitted(pruned.last, before.last, small["last"][0], dense["last"][1] + sum(errors), pruned.last.bias)


def test_of_two_that_join_one_sum_each_has_the_others_that_it_waits_for() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Three().eval()
    structure, batches = find_layers(model, zoo.RGB), zoo.batches("vgg", (60, 40))
    found = []
    for limits in ({}, {"held": 0, "front": 0}):  # the dense network's features kept, or walked for
        compressed = cut_channels(model, structure, half(structure))
        SequentialRepair(model, batches, **limits)(compressed, refit=True)
        found.append(compressed.model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


class Weighted(nn.Module):
    """A sum that weighs one of its operands, and so is none that a target could be taken from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.mid = nn.Conv2d(6, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 8, 3, padding=1)
        self.head = zoo.Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(F.relu(self.stem(x))))
        return self.head(torch.add(x, self.last(F.relu(self.inner(x))), alpha=3.0))


def test_a_weighted_sum_is_not_taken_for_a_plain_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Weighted().eval()
    structure = find_layers(model, zoo.RGB)
    selection = half(structure)
    batches = zoo.batches("vgg", (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    assert [layer.name for layer in structure.layers] == ["stem", "inner"]  # the trunk stays whole
    assert (dense["mid"][1] - small["mid"][1]).abs().max() > 1e-2  # but what it carries has drifted
    assert_fitted(pruned.last, before.last, small["last"][0], dense["last"][1], pruned.last.bias)


def test_refitted_layers_keep_a_stronger_hold_on_their_old_weights() -> None:
    model, structure = zoo.make("residual"), zoo.structure("residual")
    selection = half(structure, seed=1)
    batches = zoo.batches("residual", (60, 40))
    before, pruned = shrink(model, structure, selection), repaired(model, structure, selection, batches, refit=True)
    x = torch.cat([images for images, _ in batches])
    dense, small = watch(model, x), watch(pruned, x)
    rows = torch.from_numpy(selection[structure.index("layer2.0.conv1")])
    assert_fitted(
        pruned.layer2[0].conv1,  # its own inputs are whole, but drifted
        before.layer2[0].conv1,
        small["layer2.0.conv1"][0],
        dense["layer2.0.conv1"][1][:, rows],
        before.layer2[0].bn1.running_mean - pruned.layer2[0].bn1.running_mean,
        REFIT_RIDGE,
    )
    assert_fitted(pruned.linear, before.linear, small["linear"][0], dense["linear"][1], pruned.linear.bias, REFIT_RIDGE)
    assert torch.equal(pruned.conv1.weight, before.conv1.weight)  # nothing in front of it has changed
    assert torch.equal(pruned.layer1[0].conv1.weight, before.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("name", "cut", "sparsity"),
    [
        *((name, cut, 0.5) for name, cut in [*TRACEABLE, ("digits", "all")]),
        *((name, "inner", 0.25) for name in ("vgg", "plain_bias", "grouped", "densenet", "residual")),
    ],
)
def test_repair_brings_the_logits_nearer(name: str, cut: str, sparsity: float) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    selection = half(structure, seed=3, sparsity=sparsity)
    batches = zoo.batches(name)
    x = torch.cat([images for images, _ in batches])
    unrepaired = distance(shrink(model, structure, selection), model, x)
    plain = distance(repaired(model, structure, selection, batches), model, x)
    refitted = distance(repaired(model, structure, selection, batches, refit=True), model, x)
    assert plain < unrepaired
    assert plain < 1.0 or name in ("preactivation", "own_shortcut", "bottleneck", "recurrent"), plain
    assert refitted < 1.0 or name == "recurrent"  # half of what the GRU reads is gone, and it cannot be re-fitted
    assert refitted <= 1.05 * plain + 1e-3


@CASES
@pytest.mark.parametrize("refit", [False, True])
def test_features_that_are_kept_repair_as_those_that_are_not(name: str, cut: str, refit: bool) -> None:
    model, structure, batches = zoo.make(name), zoo.structure(name, cut), zoo.batches(name)
    shared = SequentialRepair(model, batches)
    assert 0 < shared.bytes < HELD
    for seed in (0, 1):  # the second network finds them there
        selection = half(structure, seed)
        compressed = cut_channels(model, structure, selection)
        shared(compressed, refit=refit)
        anew = repaired(model, structure, selection, batches, refit)
        for key, tensor in anew.state_dict().items():
            assert torch.equal(compressed.model.state_dict()[key], tensor), key
    held = [t for features in shared._features.values() for feature in features for t in feature if t is not None]
    assert sum(t.numel() * t.element_size() for t in held) == shared.bytes


@CASES
def test_memory_that_is_bounded_repairs_as_memory_that_is_not(name: str, cut: str) -> None:
    """Where no value may be kept every layer begins with the images again; batches come as they are looked at."""
    model, structure, batches = zoo.make(name), zoo.structure(name, cut), zoo.batches(name)
    free, bounded = (cut_channels(model, structure, half(structure)) for _ in range(2))
    SequentialRepair(model, batches)(free, refit=True)
    SequentialRepair(model, with_images(batches, torch.clone), held=0, front=0)(bounded, refit=True)
    for key, tensor in free.model.state_dict().items():
        assert torch.equal(bounded.model.state_dict()[key], tensor), key


@CASES
def test_nothing_cut_nothing_changed(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    batches = zoo.batches(name, (8,))
    for refit in (False, True):
        pruned = repaired(model, structure, zoo.whole(structure), batches, refit)
        zoo.assert_same_network(pruned, model, batches[0][0])


@CASES
def test_the_dense_network_is_untouched_and_modes_stay(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    before = copy.deepcopy(model)
    pruned = repaired(model, structure, half(structure), zoo.batches(name, (6, 4)), refit=True)
    for key, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    for network in (model, pruned):
        for (module_name, module), old in zip(network.named_modules(), before.modules(), strict=True):
            assert not module.training
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert getattr(module, "inplace", None) == getattr(old, "inplace", None), module_name


@pytest.mark.parametrize("name", ["residual", "vgg"])
def test_batches_may_be_of_any_size(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    selection = half(structure)
    x = torch.cat([images for images, _ in zoo.batches(name)])
    one = repaired(model, structure, selection, [(x, torch.zeros(len(x)))])
    many = repaired(model, structure, selection, [(part, torch.zeros(len(part))) for part in x.split(7)])
    with torch.no_grad():
        torch.testing.assert_close(one(x), many(x), rtol=1e-2, atol=1e-2)


def test_a_repaired_network_can_be_trained() -> None:
    model, structure = zoo.make("downsample"), zoo.structure("downsample")
    pruned = repaired(model, structure, half(structure), zoo.batches("downsample", (8,)), refit=True)
    pruned(zoo.images("downsample", 4)).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_a_flat_batch_norm_asks_for_nothing_impossible() -> None:
    model, structure = zoo.make("residual"), zoo.structure("residual")
    with torch.no_grad():
        model.layer2[0].bn2.weight[:3] = 0.0
        model.layer3[0].bn2.weight[:] = 0.0
    batches = zoo.batches("residual")
    pruned = repaired(model, structure, half(structure), batches, refit=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in pruned.state_dict().values())
    assert distance(pruned, model, batches[0][0]) < 1.0


def test_fewer_images_than_inputs_stay_finite() -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    pruned = repaired(model, structure, half(structure), zoo.batches("vgg", (2,)))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in pruned.state_dict().values())


@pytest.mark.parametrize("name", [name for name, toy in zoo.ZOO.items() if not toy.traceable])
def test_an_untraceable_network_is_refused(name: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name)
    selection = half(structure)
    compressed = cut_channels(model, structure, selection)
    message = r"torch.fx cannot follow this network's forward \(.+\)"
    with pytest.raises(UntraceableError, match=message):
        zoo.repair_sequentially(compressed, model, zoo.batches(name, (4,)))


class Overwriting(nn.Module):
    """Its ReLU changes, in place and through a view, what the shortcut takes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = zoo.Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.conv2(F.relu(self.conv1(self.relu(x[:, :])))))


class Silent(nn.Module):
    """Fails without a word on anything that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(zoo.conv_bn(3, 6), zoo.conv_bn(6, 8), zoo.Head(8))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            raise NotImplementedError
        return self.stack(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Overwriting(), "it changes a tensor in place that is used again"), (Silent(), "NotImplementedError")],
)
def test_what_is_traced_must_compute_the_same(model: nn.Module, reason: str) -> None:
    structure = find_layers(model.eval(), zoo.RGB)
    selection = half(structure)
    compressed = cut_channels(model, structure, selection)
    before = copy.deepcopy(compressed.model.state_dict())
    with pytest.raises(UntraceableError, match=reason):
        zoo.repair_sequentially(compressed, model, zoo.batches("vgg", (4,)))
    for key, tensor in before.items():
        assert torch.equal(compressed.model.state_dict()[key], tensor)


class InPlace(nn.Module):
    """Every operator in place that the walk must not let spoil what others look at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(4)])
        self.head = zoo.Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        y = self.convs[0](x)
        y += x
        y = y.relu_()
        z = self.convs[1](y)
        z *= 0.5
        z = operator.iadd(z, y)
        z = F.leaky_relu(z, 0.1, inplace=True)
        z = self.convs[2](z).add_(z)
        return self.head(F.relu_(self.convs[3](z)))


@pytest.mark.parametrize("refit", [False, True])
def test_operators_in_place(refit: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InPlace().eval()
    structure = find_layers(model, zoo.RGB, cut="all")
    batches = zoo.batches("vgg")
    pruned = repaired(model, structure, half(structure), batches, refit)
    assert distance(pruned, model, batches[0][0]) < 0.9
    assert torch.equal(batches[0][0], zoo.images("vgg", len(batches[0][0])))
