"""Baselines and criteria of the weights alone, against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoo
from secateur.pruners.channels.criteria import rank
from secateur.pruners.channels.criteria.simple import bn_scale, fpgm, max_response
from secateur.pruners.context import Context


def context(name: str, cut: str = "inner", seed: int = 0) -> Context:
    return Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name, (16,)), seed=seed)


def test_max_response_sums_the_consumers_weights() -> None:
    seen = context("vgg")
    expected = seen.model[2][0].weight.detach().abs().double().sum((0, 2, 3))
    np.testing.assert_allclose(max_response(seen, seen.structure.layers[0]), expected, rtol=1e-6)
    flat = seen.model[5].weight.detach().abs().double().sum(0).reshape(6, 4).sum(1)
    np.testing.assert_allclose(max_response(seen, seen.structure.layers[1]), flat, rtol=1e-6)


def test_max_response_of_a_trunk_and_of_groups() -> None:
    seen = context("downsample", "all")
    trunk = seen.structure.layers[seen.structure.index("stem.0")]
    consumers = (seen.model.block1.conv1, seen.model.block2.conv1, seen.model.block2.downsample[0])
    expected = sum(module.weight.detach().abs().double().sum((0, 2, 3)) for module in consumers)
    np.testing.assert_allclose(max_response(seen, trunk), expected, rtol=1e-6)
    grouped = context("grouped")
    # 8 channels in two groups of four: unit c is input c of either group
    expected = grouped.model[1][0].weight.detach().abs().double().sum((0, 2, 3))
    np.testing.assert_allclose(max_response(grouped, grouped.structure.layers[0]), expected, rtol=1e-6)


def test_first_k() -> None:
    for order in rank(context("residual", "all"), "first_k"):
        assert order.tolist() == list(range(len(order)))


def test_random_is_drawn_from_the_seed_and_the_layer() -> None:
    seen, again, other = (rank(context("resnet20", seed=seed), "random") for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(seen, other, strict=True))
    assert not np.array_equal(seen[-1], seen[-2])


def test_random_takes_any_seed() -> None:
    assert rank(context("vgg", seed=-1), "random")


def test_bn_scale() -> None:
    seen = context("vgg")
    with torch.no_grad():
        seen.model[0][1].weight[3] = -7.0
    np.testing.assert_allclose(bn_scale(seen, seen.structure.layers[0]), seen.model[0][1].weight.detach().abs())
    assert rank(seen, "bn_scale")[0][0] == 3


def test_bn_scale_is_the_mean_over_the_norms_of_a_trunk_and_over_groups() -> None:
    seen = context("downsample", "all")
    trunk = seen.structure.layers[seen.structure.index("block2.conv2")]
    norms = (seen.model.block2.bn2, seen.model.block2.downsample[1])
    expected = sum(norm.weight.detach().abs().double() for norm in norms) / 2
    np.testing.assert_allclose(bn_scale(seen, trunk), expected, rtol=1e-6)
    grouped = context("grouped")
    expected = grouped.model[0][1].weight.detach().abs().double().reshape(2, 4).mean(0)
    np.testing.assert_allclose(bn_scale(grouped, grouped.structure.layers[0]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["plain_bias", "prelu", "tokens"])
def test_without_batch_norm_its_scale_is_l1(name: str) -> None:
    seen = context(name)
    assert [o.tolist() for o in rank(seen, "bn_scale")] == [o.tolist() for o in rank(seen, "l1")]


def test_fpgm_is_the_distance_to_all_other_filters() -> None:
    seen = context("vgg")
    for layer, module in zip(seen.structure.layers, (seen.model[0][0], seen.model[2][0], seen.model[5]), strict=True):
        filters = module.weight.detach().double().flatten(1).numpy()
        expected = [sum(np.linalg.norm(mine - other) for other in filters) for mine in filters]
        np.testing.assert_allclose(fpgm(seen, layer), expected, rtol=1e-6)


def test_fpgm_removes_the_median_and_not_the_smallest() -> None:
    seen = context("vgg")
    with torch.no_grad():
        weight = seen.model[0][0].weight
        weight.copy_(torch.full_like(weight, 3.0) + 0.1 * weight)
        weight[2] = 0.0  # far from all others
    order = rank(seen, "fpgm")[0]
    assert order[0] == 2
    assert rank(seen, "l1")[0][-1] == 2
