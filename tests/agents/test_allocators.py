"""Every allocator, and the rules against what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.agents import ALLOCATORS, SearchProblem, get_allocator
from secateur.agents.allocators import registry, rules
from secateur.pruners.budget import Budget
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.criteria import Elimination
from secateur.pruners.context import Context
from secateur.storage.cache import Store

CASES = [("digits", "inner", kind, share) for kind, share in (("flops", 0.2), ("flops", 0.9), ("params", 0.3))] + [
    (name, cut, "flops", None)
    for name, cut in dict(zoo.few_cases()).items()  # with the trunk, if there is one
]
CASES += [(name, cut, "latency", None) for name, cut in zoo.TIMED]


class Quality:
    """Falls with the distance from a plan that was drawn; remembers what it was asked."""

    def __init__(self, seed=0):
        self.seed = seed
        self.asked = []

    def __call__(self, kept):
        self.asked.append(tuple(kept.tolist()))
        return -float(np.abs(kept - np.random.default_rng(self.seed).integers(1, 30, len(kept))).sum())


def spent(budget, kept):
    """Not one more channel fits anywhere."""
    for layer, unit in enumerate(np.eye(len(kept), dtype=np.int64)):
        if kept[layer] < budget.structure.units[layer] and budget.cost(kept + unit) <= budget.limit:
            return False
    return True


@pytest.mark.parametrize(("network", "cut", "kind", "fraction"), CASES)
def test_every_allocator_spends_the_budget_and_no_more(problem, network, cut, kind, fraction):
    for name in ALLOCATORS:
        given = problem(network, fraction, kind, cut, quality=Quality(), candidates=5)
        kept = get_allocator(name).allocate(given)
        budget = given.budget
        assert kept.dtype == np.int64, name
        assert budget.cost(kept) <= budget.limit, name
        assert np.all(kept >= budget.least), name
        assert np.all(kept <= budget.structure.units), name
        assert spent(budget, kept), name


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_whole_budget_leaves_the_network_whole(problem, name):
    given = problem(fraction=1.0, candidates=3)
    assert get_allocator(name).allocate(given).tolist() == given.budget.structure.units.tolist()


@pytest.mark.parametrize("name", ALLOCATORS)
def test_an_allocator_repeats_itself_under_a_seed(problem, name):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    qualities = [Quality(), Quality()]
    rngs = [np.random.default_rng(7), np.random.default_rng(7)]
    kept = [
        get_allocator(name).allocate(problem(quality=quality, candidates=25, rng=rng))
        for quality, rng in zip(qualities, rngs, strict=True)
    ]
    assert kept[0].tolist() == kept[1].tolist()
    assert qualities[0].asked == qualities[1].asked
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("candidates", [1, 2, 37])
def test_candidates_are_counted_exactly_and_none_is_evaluated_twice(problem, name, candidates):
    quality = Quality()
    best = get_allocator(name).allocate(problem(quality=quality, candidates=candidates))
    assert len(quality.asked) == (candidates if get_allocator(name).searches else 0)
    assert len(set(quality.asked)) == len(quality.asked)
    if quality.asked:
        assert quality(best) == max(Quality()(np.array(kept)) for kept in quality.asked)


@pytest.mark.parametrize("name", [name for name in ALLOCATORS if get_allocator(name).searches])
def test_a_search_ends_where_there_is_nothing_new(problem, name):
    quality = Quality()
    given = problem("own_shortcut", quality=quality, candidates=50)
    assert len(given.dense) == 1  # one layer: one plan on the budget
    get_allocator(name).allocate(given)
    assert len(quality.asked) == 1


def test_the_threshold_is_the_same_for_every_layer(problem):
    rng = np.random.default_rng(0)
    given = problem()
    layers = given.budget.structure.layers
    curves = [np.append(np.sort(rng.uniform(size=layer.units))[::-1], 0.0) for layer in layers]
    shares = rng.uniform(0.1, 2.0, len(layers))
    context = replace(given.context, store=Store())
    context.store.get("shares", lambda: {"shares": torch.from_numpy(shares)})
    for layer, curve in zip(layers, curves, strict=True):
        context.store.get(f"obs-{layer.name}", Elimination(np.arange(layer.units), curve).state)
    kept = get_allocator("threshold").allocate(replace(given, context=context))
    scaled = [share * curve for share, curve in zip(shares, curves, strict=True)]
    errors = [curve[count] for curve, count in zip(scaled, kept, strict=True)]
    before = [curve[count - 1] for curve, count in zip(scaled, kept, strict=True)]
    level = max(errors)  # one channel less anywhere is above it, but where the rest of the budget was spent
    assert sum(error <= level <= previous for error, previous in zip(errors, before, strict=True)) >= 5


def test_erk_by_hand():
    """Densities (3+20+3+3)/(3·20·9) = 29/540 and (20+40+1+1)/(20·40) = 62/800: they differ by the factor 1.4431."""
    model = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 40, 1), nn.ReLU(), zoo.Head(40))
    structure = find_layers(model.eval(), (3, 8, 8))
    assert [rules.density(structure, layer) for layer in structure.layers] == [29 / 540, 62 / 800]

    # half the multiply-accumulates: 64·(27·a + a·b) + 5·b with a = 20·s, b = 40·1.4431·s; at 0.5 of 86 · 1000 …
    budget = Budget(structure, "flops", 0.5)
    kept = get_allocator("erk").allocate(SearchProblem(budget, Context(model, structure, [])))
    share = next(
        s for s in np.linspace(1, 0, 100001) if 64 * (540 * s + 800 * 1.44313 * s * s) + 288.6 * s <= 0.5 * 86_000
    )
    np.testing.assert_allclose(kept, [20 * share, 40 * 1.44313 * share], atol=1.0)


def test_erk_keeps_at_most_all_of_a_layer_and_gives_the_rest_to_others(problem):
    given = problem("resnet20", 0.8)
    kept = get_allocator("erk").allocate(given)
    structure = given.budget.structure
    wishes = structure.units * np.array([rules.density(structure, layer) for layer in structure.layers])
    whole = kept == structure.units
    assert whole[:3].all()  # the smallest kernels are the densest
    assert not whole[-2:].any()
    factor = np.mean(kept[~whole] / wishes[~whole])
    np.testing.assert_allclose(kept[~whole], factor * wishes[~whole], atol=2.0)
    assert np.all(factor * wishes[whole] > structure.units[whole] - 2.0)


def test_erk_pools_the_densities_of_coupled_producers():
    structure = zoo.structure("downsample", "all")
    trunk = structure.layers[structure.index("block2.conv2")]  # 8 → 8, 3×3; and 6 → 8, 1×1
    assert rules.density(structure, trunk) == pytest.approx((8 + 8 + 3 + 3 + 6 + 8 + 1 + 1) / (8 * 8 * 9 + 6 * 8))


def test_an_unknown_name_gets_the_near_miss():
    with pytest.raises(ValueError, match="did you mean uniform"):
        get_allocator("uniforms")


def test_one_that_is_for_channels_is_refused_where_weights_are_pruned():
    with pytest.raises(ValueError, match="allocator global_taylor is for channels, not for weights: leave it out"):
        get_allocator("global_taylor", "weights")
    assert get_allocator("global_taylor", "channels") is get_allocator("global_taylor")
    assert get_allocator("lamp", "weights").allocate is ALLOCATORS["lamp"].allocate


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"evolution needs cma: pip install 'secateur\[search\]'"):
        get_allocator("evolution")
    assert get_allocator("hill_climb").searches
