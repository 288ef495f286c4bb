"""One dense network compressed in many ways, and adaptive batch norm."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from secateur.configs.schema import Repair
from secateur.networks.inference import channels_last, count_images, first_images, later_images, regrouped
from secateur.pruners.channels.method import cut
from secateur.pruners.channels.shrink import shrink
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.method import METHODS, Compressed
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.pruners.repair.gram import repair_from_moments
from secateur.pruners.repair.sequential import SequentialRepair
from secateur.pruners.structure import PlanError


def compressor(name: str, cut: str = "inner") -> Compressor:
    return Compressor(Context(zoo.make(name), zoo.structure(name, cut), zoo.batches(name), "l1"))


def repaired(p: Compressor, kept: np.ndarray, kind: str = "none", **given: Any) -> nn.Module:
    """Without a guard and without a re-fit of what was not cut, unless told otherwise."""
    return p(kept, Repair(**{"kind": kind, "guard": False, "refit": False, **given}))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", ["residual", "vgg"])
def test_it_is_shrink_and_repair(name: str) -> None:
    p = compressor(name)
    kept = np.maximum(1, p.structure.units // 2)
    selection = METHODS["channels"].selection(p.context, kept)  # type: ignore[attr-defined]
    assert zoo.kept_of(selection) == kept.tolist()
    calibration = [(channels_last(images), labels) for images, labels in p.context.calibration]

    def fresh() -> Compressed:
        return cut(p.dense, zoo.structure(name), selection)

    assert same(p.compress(kept).model, shrink(p.dense, zoo.structure(name), selection))
    assert same(repaired(p, kept), p.compress(kept).model)
    expected = fresh()
    repair_from_moments(expected, p.dense, zoo.moments(p.dense, p.structure, p.context.calibration))
    assert same(repaired(p, kept, "gram"), expected.model)
    for refit in (False, True):
        for images, batches in ((None, calibration), (24, calibration[:1]), (30, first_images(calibration, 30))):
            expected = fresh()
            zoo.repair_sequentially(expected, p.dense, batches, refit=refit)
            assert same(repaired(p, kept, "sequential", refit=refit, images=images), expected.model)
    for samples in (1, 4):
        expected = fresh()
        SequentialRepair(p.dense, calibration, samples=samples)(expected)
        assert same(repaired(p, kept, "sequential", samples=samples), expected.model)
    expected = fresh()
    adapt_batchnorm(expected.model, first_images(calibration, 25))
    assert same(repaired(p, kept, adaptive_bn=25), expected.model)


def test_compressing_does_not_change_the_dense_network_nor_depend_on_the_past() -> None:
    p = compressor("residual", "all")
    before = copy.deepcopy(p.dense)
    half, quarter = np.maximum(1, p.structure.units // 2), np.maximum(1, p.structure.units // 4)
    first = copy.deepcopy(repaired(p, half, "sequential", refit=True, adaptive_bn=24))
    for kind in ("none", "gram", "sequential"):
        repaired(p, quarter, kind, adaptive_bn=24)
    assert same(p.dense, before)
    assert same(repaired(p, half, "sequential", refit=True, adaptive_bn=24), first)


def distance(p: Compressor, pruned: nn.Module) -> float:
    """Squared, of the logits from the dense network's, on the first 100 calibration images."""
    x = torch.cat([images for images, _ in p.context.calibration])[:100]
    with torch.no_grad():
        return float((pruned(x) - p.dense(x)).square().sum(1).mean())


def test_a_repair_that_harms_is_not_taken() -> None:
    p = compressor("residual", "sampled")
    kept = np.maximum(1, p.structure.units // 4)
    unrepaired, fitted = repaired(p, kept), repaired(p, kept, "gram")
    figures = [f"{distance(p, model):.4g}" for model in (fitted, unrepaired)]
    with pytest.warns(RuntimeWarning, match=f"the gram repair was not taken: .* {figures[0]} with .* {figures[1]} wit"):
        assert same(repaired(p, kept, "gram", guard=True), unrepaired)


@pytest.mark.parametrize("harm", [1e6, float("nan")])
def test_what_takes_the_place_of_a_sequential_repair_is_a_gram_repair(
    harm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(_self: object, compressed: Compressed, **_kwargs: object) -> None:
        compressed.model.get_submodule("linear").bias = nn.Parameter(torch.full((zoo.CLASSES,), harm))

    monkeypatch.setattr("secateur.pruners.repair.sequential.SequentialRepair.__call__", break_it)
    p = compressor("residual")
    kept = p.structure.units // 2
    with pytest.warns(RuntimeWarning, match="the sequential repair was not taken"):
        fallen_back = repaired(p, kept, "sequential", guard=True)
    assert same(fallen_back, repaired(p, kept, "gram", guard=True))


@pytest.mark.parametrize("repair", ["gram", "sequential"])
def test_a_plan_that_loses_nothing_raises_no_alarm(repair: str) -> None:
    """A repair moves its outputs by rounding errors alone, in either direction."""
    model = zoo.make("vgg")
    structure = zoo.structure("vgg")
    kept = structure.units - 2
    for layer in structure.layers:
        for part in layer.weights("in"):
            gone = torch.from_numpy(part.positions[:2].ravel())
            with torch.no_grad():
                model.get_parameter(part.parameter).index_fill_(part.dim, gone, 0.0)
    p = Compressor(Context(model, structure, zoo.batches("vgg"), "obs"))
    with warnings.catch_warnings(action="error"):
        found = repaired(p, kept, repair, guard=True, refit=True)
    assert distance(p, found) < 1e-9


@pytest.mark.parametrize("repair", ["gram", "sequential", "none"])
@pytest.mark.parametrize("cuts", [(24,), (5, 19)])
def test_calibration_images_that_are_one_and_the_same_are_told_once(repair: str, cuts: tuple[int, ...]) -> None:
    images, labels = zoo.batches("vgg", (1,))[0]
    same = [(images.expand(count, -1, -1, -1), labels.expand(count)) for count in cuts]
    p = Compressor(Context(zoo.make("vgg"), zoo.structure("vgg"), same, "l1"))
    kept = p.structure.units - 1
    with pytest.warns(RuntimeWarning, match=r"all calibration images \(24\) are the same.*pass a few hundred"):
        repaired(p, kept, repair, adaptive_bn=24)
    with warnings.catch_warnings(action="error"):
        repaired(p, kept, repair, adaptive_bn=24)
        other = [(images + torch.arange(count).view(-1, 1, 1, 1) / 24, labels.expand(count)) for count in cuts]
        p = Compressor(Context(zoo.make("vgg"), zoo.structure("vgg"), other, "l1"))
        repaired(p, kept, repair, adaptive_bn=24)


@functools.cache
def cached_compressor(name: str, cut: str) -> Compressor:
    return compressor(name, cut)


@pytest.mark.filterwarnings("ignore:the .* repair was not taken:RuntimeWarning")
@settings(max_examples=40, deadline=None)
@given(data=st.data(), case=st.sampled_from([case for case in zoo.small_cases() if zoo.ZOO[case[0]].traceable]))
def test_no_repair_takes_the_logits_further_off(data: st.DataObject, case: tuple[str, str]) -> None:
    p = cached_compressor(*case)
    kept = np.array([data.draw(st.integers(1, int(units))) for units in p.structure.units])
    repair = data.draw(st.sampled_from(["gram", "sequential", "none"]))
    options = {
        "refit": data.draw(st.booleans()),
        "adaptive_bn": data.draw(st.sampled_from([0, 24])),
        "images": data.draw(st.sampled_from([None, 24])),
    }
    found = distance(p, repaired(p, kept, repair, guard=True, **options))
    assert found <= distance(p, p.compress(kept).model) * (1 + 1e-5)


def test_a_dead_layer_leaves_a_sequential_repair_finite() -> None:
    p = compressor("shared_two_norms")
    pruned = repaired(p, p.structure.units // 2, "sequential")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in pruned.state_dict().values())


def test_nothing_cut_nothing_recalibrated() -> None:
    p = compressor("residual")
    assert same(repaired(p, p.structure.units, "sequential", refit=True, adaptive_bn=24, guard=True), p.dense)


def test_pruned_and_masked_networks_are_in_eval_mode_and_agree() -> None:
    p = compressor("downsample", "all")
    p.dense.train()
    kept = np.maximum(1, p.structure.units // 2)
    small, masked = p.compress(kept).model, p.masked(kept)
    assert not any(module.training for network in (small, masked) for module in network.modules())
    x = zoo.images("downsample", 3)
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x))


def test_bad_counts() -> None:
    for ask in (compressor("vgg").compress, compressor("vgg").masked):
        with pytest.raises(PlanError, match=r"layer 0.0: 0 units kept is outside 1 … 8"):
            ask(np.array([0, 1, 1]))


@pytest.mark.parametrize("count", [0, 1, 24, 25, 47, 48, 64, 1000])
def test_first_images_are_as_many_as_asked_for_and_later_ones_all_others(count: int) -> None:
    batches = zoo.batches("vgg", (24, 24, 16))
    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    for found, part in (
        (first_images(batches, count), slice(count)),
        (later_images(batches, count), slice(count, None)),
    ):
        assert count_images(found) == len(whole[0][part])
        for position, parts in enumerate(zip(*found, strict=True)):
            assert torch.equal(torch.cat(parts), whole[position][part])


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), size=st.integers(2, 7))
def test_regrouped_images_are_the_same_ones(sizes: list[int], size: int) -> None:
    images = torch.arange(sum(sizes) * 2.0).reshape(-1, 2)
    groups = list(regrouped([(part, part) for part in images.split(sizes)], size))
    assert torch.equal(torch.cat(groups), images)
    counts = [len(group) for group in groups]
    assert counts[:-1] == [size] * (len(counts) - 1)
    assert counts == [1] or 2 <= counts[-1] <= size + 1


@settings(max_examples=15)
@given(
    sizes=st.sampled_from([(201,), (100, 100, 1), (7,) * 28 + (5,), (1,) * 201, (150, 51)]), momentum=st.floats(0, 1)
)
def test_adaptive_statistics_weigh_every_image_alike(sizes: tuple[int, ...], momentum: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None),
    )  # fmt: skip
    zoo.scramble(model)
    batches = zoo.batches("vgg", sizes)
    first, second, weights = model[1], model[5], copy.deepcopy(dict(model.named_parameters()))
    with torch.no_grad():  # of one image there is no variance behind the pooling: it goes with those before it
        once = [model[0](x) for x in torch.cat([x for x, _ in batches]).split([100, 101])]
        normed = [nn.functional.batch_norm(y, None, None, first.weight, first.bias, training=True) for y in once]
        twice = [model[4](y.mean((2, 3)))[:, :, None, None] for y in normed]
    adapt_batchnorm(model.train(), batches)
    for norm, features in ((first, once), (second, twice)):
        mean = sum(len(y) * y.mean((0, 2, 3)) for y in features) / 201
        var = sum(len(y) * y.var((0, 2, 3)) for y in features) / 201
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)
    assert (first.momentum, second.momentum) == (momentum, None)
    assert not any(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_of_one_image_there_are_no_statistics() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.BatchNorm1d(5))
    before = model[2].running_var.clone()
    adapt_batchnorm(model, [(torch.randn(1, 3, 8, 8), torch.zeros(1))])
    assert torch.equal(model[2].running_var, before)


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
    p = compressor("digits")
    kept = p.structure.units // 2
    x = torch.cat([images for images, _ in p.context.calibration])
    adapt_batchnorm(p.dense, p.context.calibration)  # as if it had been trained on them
    with torch.no_grad():
        dense, plain, adapted = (m(x) for m in (p.dense, repaired(p, kept), repaired(p, kept, adaptive_bn=64)))
    assert (adapted - dense).square().mean() < (plain - dense).square().mean()
