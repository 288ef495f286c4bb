"""What other networks taught of the loss model: features of any network, the file, and what it does to a plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.agents import get_allocator
from secateur.agents.correction import Correction, shipped
from secateur.agents.features import FEATURES, layer_features
from secateur.pruners.loss_model import LossModel, best_steps
from secateur.storage.files import read_tensors, write_tensors

WALKED = [
    ("residual", "all"),
    ("grouped", "inner"),
    ("densenet", "inner"),
    ("transformer", "inner"),
    ("norms", "inner"),
]


def correction(weights=None, scale=0.0, bend=0.0, about=None):
    """`weights` of u by feature, plus constants."""
    weight = np.zeros((2, len(FEATURES)))
    for name, value in (weights or {}).items():
        weight[0, FEATURES.index(name)] = value
    zeros, ones = np.zeros(len(FEATURES)), np.ones(len(FEATURES))
    return Correction(zeros, ones, weight, np.array([scale, bend]), about or {})


@pytest.mark.parametrize(("name", "cut"), WALKED)
def test_features_are_finite_and_alike_for_every_network(problem, name, cut):
    given = problem(name, cut=cut)
    found = layer_features(given.context, LossModel.of(given.context), given.budget)
    assert found.shape == (len(given.budget.structure.layers), len(FEATURES))
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def column(found, name):
    return found[:, FEATURES.index(name)]


def test_features_say_what_they_are_named(problem):
    given = problem("digits", 0.5)
    losses = LossModel.of(given.context)
    found = layer_features(given.context, losses, given.budget)
    heights = np.log([curve[0] for curve in losses.curves])
    np.testing.assert_allclose(column(found, "sensitivity"), heights - heights.mean())
    np.testing.assert_allclose(column(found, "sensitivity_before")[1:], -np.diff(heights))
    np.testing.assert_allclose(column(found, "sensitivity_after")[:-1], np.diff(heights))
    assert column(found, "sensitivity_before")[0] == column(found, "sensitivity_after")[-1] == 0.0
    base = get_allocator("knapsack").allocate(given)
    np.testing.assert_allclose(column(found, "base_kept"), base / given.budget.structure.units)
    np.testing.assert_allclose(10 ** column(found, "base_total"), losses.predict(base))
    assert np.all(column(found, "budget") == 0.5)
    assert np.all((column(found, "rank") > 0.0) & (column(found, "rank") <= 1.0))
    assert np.all(column(found, "norm") == 1.0)


def test_the_rank_is_the_participation_ratio(problem):
    given = problem("vgg")
    found = layer_features(given.context, LossModel.of(given.context), given.budget)
    layer = given.budget.structure.layers[0]
    values = [
        np.linalg.eigvalsh(given.context.moments.inputs[name].centered()[2].numpy()).ravel() for name in layer.consumers
    ]
    ratios = [one.sum() ** 2 / (len(one) * np.square(one).sum()) for one in values]
    assert column(found, "rank")[0] == pytest.approx(np.mean(ratios))


def test_a_correction_of_nothing_is_the_rule(problem):
    given = problem("digits", 0.4)
    losses = correction().corrected(given.context, given.budget)
    kept = best_steps(given.budget, losses.gains(given.budget))
    assert kept.tolist() == get_allocator("knapsack").allocate(given).tolist()
    for found, curve in zip(losses.curves, LossModel.of(given.context).curves, strict=True):
        np.testing.assert_allclose(found, curve)


def test_a_layer_that_is_said_to_lose_more_keeps_more(problem):
    given = problem("digits", 0.4)
    kept = [
        best_steps(
            given.budget, correction({"index": slope}).corrected(given.context, given.budget).gains(given.budget)
        )
        for slope in (-1.0, 1.0)
    ]
    early, late = (np.array(kept)[:, part].sum(axis=1) for part in (slice(0, 3), slice(3, 6)))
    assert early[0] > early[1]
    assert late[0] < late[1]


def test_a_bend_raises_what_is_large_and_lowers_what_is_small(problem):
    given = problem("digits", 0.4)
    straight = LossModel.of(given.context)
    mean = straight.predict(get_allocator("knapsack").allocate(given)) / len(straight.curves)
    bent = correction(bend=0.5).corrected(given.context, given.budget)
    for before, after in zip(straight.curves, bent.curves, strict=True):
        assert np.all(np.sign(after - before)[before > 0.0] == np.sign(before - mean)[before > 0.0])
        assert np.all(np.diff(after) <= 0.0)


def test_however_wild_the_features_a_curve_stays_one():
    u, v = correction({"share": 1e6}, bend=1e6).answers(np.full((3, len(FEATURES)), -1e9))
    assert np.all(np.abs(u) <= 2.0)
    assert np.all((v > -1.0) & (v <= 0.6))


def test_a_file_says_the_same(tmp_path):
    rng = np.random.default_rng(0)
    size = len(FEATURES)
    weight, bias = rng.normal(size=(2, size)), rng.normal(size=2)
    first = Correction(rng.normal(size=size), rng.uniform(1, 2, size), weight, bias, {"a": "b"})
    first.save(tmp_path / "c.safetensors")
    again = Correction.load(tmp_path / "c.safetensors")
    x = rng.normal(size=(5, len(FEATURES)))
    np.testing.assert_array_equal(first.answers(x), again.answers(x))
    assert again.about["a"] == "b"


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        correction(scale=np.nan).save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def changed(path, about=None, **tensors):
    old, told = read_tensors(path)
    write_tensors(path, {**old, **tensors}, {**told, **(about or {})})


@pytest.mark.parametrize(
    ("about", "tensors", "message"),
    [
        ({"version": "0"}, {}, "learnt from version 0 of the features"),
        ({"features": json.dumps(["index"])}, {}, "of the features, this is 1 .*'units'"),
        ({"features": json.dumps(list(reversed(FEATURES)))}, {}, "order or meaning"),
        ({"features": "no list"}, {}, "learn it anew"),
        ({}, {"centre": torch.full((len(FEATURES),), torch.nan, dtype=torch.float64)}, "centre holds something else"),
        ({}, {"centre": torch.zeros(len(FEATURES))}, "centre holds something else than finite float64"),
        ({}, {"scale": torch.zeros(len(FEATURES), dtype=torch.float64)}, "scale holds numbers that are not above 0"),
        ({}, {"weight": torch.zeros(2, 3, dtype=torch.float64)}, r"weight is \(2, 3\), expected"),
        ({}, {"bias": torch.zeros((), dtype=torch.float64)}, r"bias is \(\), expected \(2,\)"),
    ],
)
def test_another_file_is_refused_in_a_line(tmp_path, about, tensors, message):
    path = tmp_path / "c.safetensors"
    correction().save(path)
    changed(path, about, **tensors)
    with pytest.raises(ValueError, match=message) as refused:
        Correction.load(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    write_tensors(tmp_path / "other", {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"is no correction of loss models \(no 'features' in it\)"):
        Correction.load(tmp_path / "other")
    correction().save(tmp_path / "c")
    tensors = load_file(tmp_path / "c")
    save_file({**tensors, "centre": tensors["centre"] + 1}, tmp_path / "c")
    with pytest.raises(ValueError, match="is damaged"):
        Correction.load(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        Correction.load(tmp_path / "none")


def test_the_one_in_the_package_says_where_it_is_from():
    about = shipped().about
    assert len(about["learnt from"].split(", ")) >= 16
    assert int(about["plans"]) > 1000
    assert about["method"] == "channels"
