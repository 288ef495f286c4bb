"""The population that a policy for any network learns from: its recipes, its networks, and the learning itself."""

from __future__ import annotations

from pathlib import Path

import experience
import families
import numpy as np
import population
import pytest
import torch

import zoo
from secateur.agents.features import FEATURES
from secateur.networks import build_network
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.shrink import mask, shrink
from secateur.pruners.loss_model import LossModel
from secateur.pruners.structure import Layer, Structure

PLACES = {"{DATA}": Path("data"), "{FASHION}": Path("fashion")}


@pytest.fixture(scope="module")
def recipes():
    return population.read_recipes(population.RECIPES, PLACES)


def test_the_recipes_are_of_many_kinds(recipes):
    assert len(recipes) >= 16
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert {recipe.family for recipe in recipes} == {"resnet", "vgg", "mobilenet", "densenet"}
    for family in ("resnet", "vgg", "mobilenet", "densenet"):
        norms = {r.config.network.kwargs.get("norm", True) for r in recipes if r.family == family}
        assert norms == {True, False}
    assert all("{" not in str(recipe.config.data.root) for recipe in recipes)
    assert {recipe.config.data.name for recipe in recipes} == {"cifar10", "folder", "digits"}


def test_every_recipe_makes_a_network(recipes):
    for recipe in recipes:
        model = build_network(recipe.config.network, seed=0, trust_code=True)
        assert model(torch.zeros(1, len(recipe.config.data.mean), 8, 8)).shape == (1, 10), recipe.name


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("build", "kwargs"),
    [
        (families.resnet, {"depth": 8, "width": 0.5}),
        (families.vgg, {"width": 0.25}),
        (families.mobilenet_v1, {"width": 0.25}),
        (families.mobilenet_v2, {"width": 0.5}),
        (families.densenet, {"layers": 2, "growth": 4}),
    ],
)
def test_a_network_that_was_cut_computes_what_the_masked_one_does(build, kwargs, norm):
    model = build(5, 3, norm=norm, **kwargs)
    zoo.scramble(model)
    layers = find_layers(model.eval(), (3, 8, 8), cut="inner")
    selection = zoo.draw(layers, 0)
    x = torch.randn(4, 3, 8, 8)
    small = shrink(model, layers, selection).eval()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(small(x), mask(model, layers, selection)(x), rtol=1e-4, atol=1e-4)


def test_a_recipe_of_unknown_data_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("common: {}\ndata: {digits: {}}\nfamilies: {mine: {net: {data: cifar}}}\n")
    with pytest.raises(ValueError, match=r"net\.data = 'cifar': one of digits"):
        population.read_recipes(file, PLACES)


def test_the_later_tree_counts_key_by_key():
    assert population.merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
        "e": 5,
    }


def groups(count, seed, slope):
    """Networks of five layers whose true losses are e^{slope · index} times the predicted ones."""
    rng = np.random.default_rng(seed)
    layers = tuple(Layer(f"l{i}", 8) for i in range(5))
    structure = Structure("mine", layers, {}, {}, {}, (1, 8, 8))
    found = []
    for number in range(count):
        curves = [rng.uniform(0.5, 2.0) * (1 - np.arange(1, 9) / 8) ** 2 for _ in layers]
        losses = LossModel.from_curves(structure, curves)
        features = rng.normal(size=(5, len(FEATURES)))
        factors = np.exp(slope * features[:, FEATURES.index("index")])
        plans = rng.integers(1, 8, (12, 5))
        terms = losses.terms(plans)
        found.append(
            experience.Group(f"n{number}", "mine", None, features, losses, plans, float(terms.mean()), terms @ factors)
        )
    return found


def test_what_a_feature_explains_is_learnt_and_carried_over():
    learnt = experience.learn(groups(24, 0, 1.0), seed=0, ridge=0.01, draws=2)
    new = groups(6, 1, 1.0)
    before, after = experience.unexplained(None, new), experience.unexplained(learnt, new)
    assert before > 0.2
    assert after < before / 4


def test_learning_repeats_itself_under_a_seed(monkeypatch):
    monkeypatch.setattr(experience, "STEPS", 5)
    given = groups(4, 0, 0.5)
    x = np.random.default_rng(0).normal(size=(3, len(FEATURES)))
    one, two, other = (experience.learn(given, seed=seed, draws=2).answers(x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
