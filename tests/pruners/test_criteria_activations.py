"""What units do on images, counted directly; and that nothing of it stays behind in the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import zoo
from secateur.pruners.channels.criteria import CRITERIA, rank
from secateur.pruners.channels.criteria.activations import apoz, mean_activation, taylor
from secateur.pruners.context import Context


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name))


def images(seen: Context) -> torch.Tensor:
    return torch.cat([x for x, _ in seen.calibration])


@torch.no_grad()
def test_zeros_and_means_of_a_plain_network() -> None:
    seen = context("vgg")
    model, x = seen.model, images(seen)
    first = model[1](model[0](x)).double()  # behind activation *and* pooling: what the next convolution sees
    flat = model[4](model[3](model[2](first.float()))).double()
    last = model[6](model[5](flat.float())).double()
    values = [first.transpose(0, 1).flatten(1), flat.reshape(len(x), 6, 4).transpose(0, 1).flatten(1), last.T]
    assert any((v == 0).any() for v in values)
    for layer, unit in zip(seen.structure.layers, values, strict=True):
        np.testing.assert_allclose(apoz(seen, layer), -(unit == 0).double().mean(1))
        np.testing.assert_allclose(mean_activation(seen, layer), unit.abs().mean(1), rtol=1e-5)


@torch.no_grad()
def test_a_unit_of_a_grouped_convolution_is_a_channel_of_every_group() -> None:
    seen = context("grouped")
    x = seen.model[0](images(seen))  # 8 channels, the consumer has two groups of four
    expected = (x == 0).double().mean((0, 2, 3)).reshape(2, 4).mean(0)
    np.testing.assert_allclose(apoz(seen, seen.structure.layers[0]), -expected)


@torch.no_grad()
def test_a_trunk_is_the_mean_over_its_consumers() -> None:
    seen = context("preactivation", "all")
    stem = seen.structure.layers[seen.structure.index("stem")]
    model = seen.model
    x = model.stem(torch.relu(model.first(images(seen))))
    branch = F.relu(model.bn1(x))
    total = F.relu(model.bn3(model.conv2(F.relu(model.bn2(model.conv1(branch)))) + x))
    pooled = total.mean((2, 3))
    zeros = [(branch == 0).double().mean((0, 2, 3)), (pooled == 0).double().mean(0)]
    np.testing.assert_allclose(apoz(seen, stem), -(zeros[0] + zeros[1]) / 2)


@torch.no_grad()
def test_tokens_are_places_of_a_linear_layer() -> None:
    seen = context("tokens")
    x = F.relu(seen.model.fc1(seen.model.patch(images(seen)).flatten(2).transpose(1, 2)))
    layer = seen.structure.layers[seen.structure.index("fc1")]
    np.testing.assert_allclose(apoz(seen, layer), -(x == 0).double().mean((0, 1)))


def gate_slopes(seen: Context, first: torch.nn.Module, rest: torch.nn.Module, width: int, samples: int) -> np.ndarray:
    """|d loss / d gate| by image, the gate multiplying a unit's features, one image at a time."""
    found = []
    for x, label in zip(images(seen), torch.cat([y for _, y in seen.calibration]), strict=True):
        features = first(x[None]).detach()
        gate = torch.ones(width, requires_grad=True)
        spread = gate.repeat_interleave(samples).reshape(1, -1, *[1] * (features.dim() - 2))
        loss = F.cross_entropy(rest(features * spread), label[None])
        found.append(torch.autograd.grad(loss, gate)[0].abs().double().numpy())
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("layer", "split", "width", "samples"), [(0, 1, 8, 1), (1, 5, 6, 4), (2, 7, 10, 1)])
def test_taylor_is_the_slope_of_a_gate(layer: int, split: int, width: int, samples: int) -> None:
    seen = context("vgg")
    expected = gate_slopes(seen, seen.model[:split], seen.model[split:], width, samples)
    np.testing.assert_allclose(taylor(seen, seen.structure.layers[layer]), expected, rtol=1e-3, atol=1e-7)


def test_taylor_of_a_trunk_is_one_gate_for_all_its_consumers() -> None:
    seen = context("downsample", "all")
    stem, rest = seen.model.stem, torch.nn.Sequential(seen.model.block1, seen.model.block2, seen.model.head)
    layer = seen.structure.layers[seen.structure.index("stem.0")]
    # The trunk's consumers see stem's and block1's output, the second without what the gate does to the first.
    x = torch.cat([image for image, _ in seen.calibration])
    labels = torch.cat([y for _, y in seen.calibration])
    gate = torch.ones(len(x), 6, 1, 1, requires_grad=True)
    trunk = stem(x).detach()
    block1, block2 = seen.model.block1, seen.model.block2
    out = torch.relu(block1.bn2(block1.conv2(torch.relu(block1.bn1(block1.conv1(trunk * gate))))) + trunk)
    logits = rest[2](block2(out * gate))
    (slopes,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), gate)
    np.testing.assert_allclose(taylor(seen, layer), slopes.abs().double().mean((0, 2, 3)), rtol=1e-3, atol=1e-7)


def test_taylor_does_not_mind_frozen_weights_nor_how_images_are_batched() -> None:
    seen = context("residual")
    scores = [taylor(seen, layer) for layer in seen.structure.layers]
    joined = [(images(seen), torch.cat([y for _, y in seen.calibration]))]
    frozen = Context(seen.model.requires_grad_(False), seen.structure, joined)
    with torch.no_grad():
        for layer, score in zip(frozen.structure.layers, scores, strict=True):
            np.testing.assert_allclose(taylor(frozen, layer), score, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["residual", "strict", "squeeze"])
def test_nothing_stays_behind_and_twins_agree(criterion: str, name: str) -> None:
    seen = context(name)
    state = {key: tensor.clone() for key, tensor in seen.model.state_dict().items()}
    for i, parameter in enumerate(seen.model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, 0.5) if i % 2 == 0 else None
    orders = [CRITERIA[criterion](seen, layer) for layer in seen.structure.layers]
    assert all(torch.equal(tensor, state[key]) for key, tensor in seen.model.state_dict().items())
    for i, parameter in enumerate(seen.model.parameters()):
        assert parameter.requires_grad == (i % 2 == 0)
        assert (parameter.grad is not None) == (i % 2 == 0)
        assert parameter.grad is None or bool((parameter.grad == 0.5).all())
    for module in seen.model.modules():
        assert not module.training
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    torch.manual_seed(1)
    for order, again in zip(orders, rank(context(name), criterion), strict=True):
        assert order.tolist() == again.tolist()
        assert order.dtype == np.int64


@pytest.mark.parametrize("criterion", ["apoz", "mean_activation", "taylor"])
def test_a_network_that_fails_keeps_no_hook(criterion: str) -> None:
    seen = context("residual")
    broken = Context(seen.model, seen.structure, [(torch.zeros(2, 5, 8, 8), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(RuntimeError):
        rank(broken, criterion)
    assert not any(module._forward_pre_hooks for module in seen.model.modules())
