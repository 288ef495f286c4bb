"""One dense network pruned in many ways, and adaptive batch norm."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from secateur.networks.inference import count_images, first_images
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.compressor import ChannelPruner
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.pruners.repair.gram import repair_from_moments
from secateur.pruners.repair.sequential import SequentialRepair, repair_sequentially
from secateur.pruners.structure import PlanError


def pruner(name: str, cut: str = "inner") -> ChannelPruner:
    return ChannelPruner(zoo.make(name), zoo.structure(name, cut), "l1", zoo.batches(name))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ["residual", "vgg"])
def test_prune_is_shrink_and_repair(name: str) -> None:
    p = pruner(name)
    kept = np.maximum(1, p.structure.units // 2)
    selection = p.selection(kept)
    assert zoo.kept_of(selection) == kept.tolist()

    expected = shrink(p.dense, p.structure, selection)
    assert same(p.prune(kept), expected)
    repair_from_moments(expected, p.dense, p.structure, selection, zoo.moments(p.dense, p.structure, p.calibration))
    assert same(p.prune(kept, "gram", guard=False), expected)
    for refit in (False, True):
        for images, batches in ((None, p.calibration), (20, p.calibration[:1]), (30, p.calibration[:2])):
            expected = shrink(p.dense, p.structure, selection)
            repair_sequentially(expected, p.dense, p.structure, selection, batches, refit=refit)
            assert same(p.prune(kept, "sequential", refit=refit, images=images, guard=False), expected)
    for samples in (1, 4):
        expected = shrink(p.dense, p.structure, selection)
        SequentialRepair(p.dense, p.structure, p.calibration, samples=samples)(expected, selection)
        assert same(p.prune(kept, "sequential", samples=samples, guard=False), expected)
    expected = shrink(p.dense, p.structure, selection)
    adapt_batchnorm(expected, p.calibration[:2])
    assert same(p.prune(kept, adaptive_bn=25, guard=False), expected)


def test_pruning_does_not_change_the_dense_network_nor_depend_on_the_past() -> None:
    p = pruner("residual", "all")
    before = copy.deepcopy(p.dense)
    half, quarter = np.maximum(1, p.structure.units // 2), np.maximum(1, p.structure.units // 4)
    first = copy.deepcopy(p.prune(half, "sequential", refit=True, adaptive_bn=24, guard=False))
    for repair in ("none", "gram", "sequential"):
        p.prune(quarter, repair, adaptive_bn=24, guard=False)  # type: ignore[arg-type]
    assert same(p.dense, before)
    assert same(p.prune(half, "sequential", refit=True, adaptive_bn=24, guard=False), first)


def distance(p: ChannelPruner, pruned: nn.Module) -> float:
    """Squared, of the logits from the dense network's, on the first 100 calibration images."""
    x = torch.cat([images for images, _ in p.calibration])[:100]
    with torch.no_grad():
        return float((pruned(x) - p.dense(x)).square().sum(1).mean())


def test_a_repair_that_harms_is_not_taken() -> None:
    p = pruner("residual", "sampled")
    kept = np.maximum(1, p.structure.units // 4)
    unrepaired, repaired = p.prune(kept), p.prune(kept, "gram", guard=False)
    figures = [f"{distance(p, model):.4g}" for model in (repaired, unrepaired)]
    with pytest.warns(RuntimeWarning, match=f"the gram repair was not taken: .* {figures[0]} with .* {figures[1]} wit"):
        assert same(p.prune(kept, "gram"), unrepaired)


@pytest.mark.parametrize("harm", [1e6, float("nan")])
def test_what_takes_the_place_of_a_sequential_repair_is_a_gram_repair(
    harm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(_self: object, pruned: nn.Module, *_args: object, **_kwargs: object) -> None:
        pruned.get_submodule("linear").bias = nn.Parameter(torch.full((zoo.CLASSES,), harm))

    monkeypatch.setattr("secateur.pruners.repair.sequential.SequentialRepair.__call__", break_it)
    p = pruner("residual")
    kept = p.structure.units // 2
    with pytest.warns(RuntimeWarning, match="the sequential repair was not taken"):
        assert same(p.prune(kept, "sequential"), p.prune(kept, "gram"))


@functools.cache
def cached_pruner(name: str, cut: str) -> ChannelPruner:
    return pruner(name, cut)


@pytest.mark.filterwarnings("ignore:the .* repair was not taken:RuntimeWarning")
@settings(max_examples=40, deadline=None)
@given(data=st.data(), case=st.sampled_from([case for case in zoo.small_cases() if zoo.ZOO[case[0]].traceable]))
def test_no_repair_takes_the_logits_further_off(data: st.DataObject, case: tuple[str, str]) -> None:
    p = cached_pruner(*case)
    kept = np.array([data.draw(st.integers(1, int(width))) for width in p.structure.units])
    repair = data.draw(st.sampled_from(["gram", "sequential", "none"]))
    options = {
        "refit": data.draw(st.booleans()),
        "adaptive_bn": data.draw(st.sampled_from([0, 24])),
        "images": data.draw(st.sampled_from([None, 24])),
    }
    repaired = distance(p, p.prune(kept, repair, **options))
    assert repaired <= distance(p, p.prune(kept)) * (1 + 1e-5)


def test_a_dead_layer_leaves_a_sequential_repair_finite() -> None:
    p = pruner("shared_two_norms")
    pruned = p.prune(p.structure.units // 2, "sequential", guard=False)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in pruned.state_dict().values())


def test_nothing_cut_nothing_recalibrated() -> None:
    p = pruner("residual")
    assert same(p.prune(p.structure.units, "sequential", refit=True, adaptive_bn=24), p.dense)


def test_pruned_and_masked_networks_are_in_eval_mode_and_agree() -> None:
    p = pruner("downsample", "all")
    p.dense.train()
    kept = np.maximum(1, p.structure.units // 2)
    small, masked = p.prune(kept), p.masked(kept)
    assert not any(module.training for network in (small, masked) for module in network.modules())
    x = zoo.images("downsample", 3)
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x))


def test_bad_widths() -> None:
    with pytest.raises(PlanError, match="width 0 is outside"):
        pruner("vgg").prune(np.array([0, 1, 1]))


def test_first_images_are_whole_batches_from_the_front() -> None:
    batches = zoo.batches("vgg", (24, 24, 16))
    assert [len(first_images(batches, n)) for n in (1, 24, 25, 48, 49, 64, 1000)] == [1, 1, 2, 2, 3, 3, 3]
    assert count_images(batches) == 64


def test_adaptive_statistics_are_the_mean_over_batches() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=None)
        )
        zoo.scramble(model)
    model[1].momentum = 0.37
    batches = zoo.batches("vgg", (10, 6))
    first, second, weights = model[1], model[4], copy.deepcopy(dict(model.named_parameters()))
    with torch.no_grad():
        once = [model[0](x) for x, _ in batches]
        normed = [nn.functional.batch_norm(y, None, None, first.weight, first.bias, training=True) for y in once]
        twice = [model[3](torch.relu(y)) for y in normed]
    adapt_batchnorm(model.train(), batches)
    for norm, features in ((first, once), (second, twice)):
        mean = sum(y.mean((0, 2, 3)) for y in features) / 2
        var = sum(y.var((0, 2, 3)) for y in features) / 2
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)
    assert (first.momentum, second.momentum) == (0.37, None)
    assert not any(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_a_batch_norm_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), zoo.Head(4))
    adapt_batchnorm(model, zoo.batches("vgg", (4,)))
    assert model[1].running_mean is None


def test_a_failing_network_gets_its_momenta_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.25), nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(RuntimeError):
        adapt_batchnorm(model, zoo.batches("vgg", (4,)))
    assert model[0].momentum == 0.25
    assert not model[0].training


def test_adaptive_batch_norm_helps_a_pruned_network() -> None:
    p = pruner("digits")
    kept = p.structure.units // 2
    x = torch.cat([images for images, _ in p.calibration])
    adapt_batchnorm(p.dense, p.calibration)  # as if it had been trained on them
    with torch.no_grad():
        dense, plain, adapted = (m(x) for m in (p.dense, p.prune(kept), p.prune(kept, adaptive_bn=64)))
    assert (adapted - dense).square().mean() < (plain - dense).square().mean()
