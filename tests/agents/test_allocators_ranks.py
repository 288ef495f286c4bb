"""Global rankings against sorting by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from secateur.agents import get_allocator
from secateur.agents.allocators.ranks import best_units, lamp_scores
from secateur.pruners import loss_model
from secateur.pruners.budget import Budget
from secateur.pruners.channels.criteria import scores


@given(seed=st.integers(0, 10**6), units=st.integers(1, 30))
def test_lamp_scores_by_brute_force(seed, units):
    squares = np.random.default_rng(seed).lognormal(0.0, 3.0, units)
    expected = [square / sum(other for other in squares if other >= square) for square in squares]
    np.testing.assert_allclose(lamp_scores(squares), expected, rtol=1e-9)


def test_lamp_scores_of_equal_and_of_empty_units():
    np.testing.assert_allclose(lamp_scores(np.array([2.0, 2.0, 4.0])), [1 / 3, 1 / 4, 1.0])
    assert lamp_scores(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@given(seed=st.integers(0, 10**6), fraction=st.floats(0.25, 1.0), kind=st.sampled_from(["flops", "params"]))
def test_the_best_units_by_sorting(seed, fraction, kind):
    structure = zoo.structure("residual", "all")
    budget = Budget(structure, kind, fraction, 0.8)
    rng = np.random.default_rng(seed)
    ranked = [rng.uniform(size=units) * rng.uniform(0.5, 2.0) for units in structure.units]
    kept = best_units(budget, ranked)

    free = [(score, layer) for layer, s in enumerate(ranked) for score in sorted(s)[: len(s) - budget.least[layer]]]
    free.sort(reverse=True)
    sizes = [budget.least + np.bincount([layer for _, layer in free[:k]], minlength=len(kept)) for k in range(99)]
    fitting = max(k for k in range(len(free) + 1) if budget.cost(sizes[k]) <= budget.limit)
    assert np.all(kept >= sizes[fitting])
    if fitting < len(free):
        unaffordable = free[fitting][1]  # the first that does not fit ends its layer
        assert kept[unaffordable] == sizes[fitting][unaffordable]
    for layer in range(len(kept)):
        one_more = kept + np.eye(len(kept), dtype=np.int64)[layer]
        assert kept[layer] == structure.units[layer] or budget.cost(one_more) > budget.limit


def sorted_out(problem, *scored):
    """Kept by sorting everything, where the ranking's own end is the budget's."""
    best = None
    for level in sorted(itertools.chain(*scored)):
        kept = np.maximum([int((s >= level).sum()) for s in scored], problem.budget.least)
        if problem.budget.cost(kept) <= problem.budget.limit:
            best = kept
            break
    return best


def filters(model, layer):
    return model.get_parameter(layer.weights("out")[0].parameter).detach().double().flatten(1)


@pytest.mark.parametrize("name", ["lamp", "global_magnitude", "global_l1", "global_taylor"])
def test_the_rule_ranks_by_its_scores(problem, name):
    given = problem("resnet20", 0.6)
    model, layers = given.context.model, given.budget.structure.layers
    if name == "lamp":
        squares = [filters(model, layer).square().sum(1).numpy() for layer in layers]
        scored = [np.array([v / s[s >= v].sum() for v in s]) for s in squares]
    elif name == "global_magnitude":
        scored = [filters(model, layer).norm(dim=1).numpy() for layer in layers]
    elif name == "global_l1":
        sums = [filters(model, layer).abs().sum(1) for layer in layers]
        scored = [(s / s.mean()).numpy() for s in sums]
    else:
        scored = [s / np.sqrt(np.square(s).sum()) for s in scores(given.context, "taylor")]
    expected = sorted_out(given, *scored)
    kept = get_allocator(name).allocate(given)
    assert np.all(kept >= expected)
    assert np.sum(kept - expected) <= 3  # what was left for cheaper units further down
    assert len(set(np.round(kept / given.dense, 1))) > 1  # and it is not the uniform plan


def test_a_layers_scale_means_nothing_to_any_ranking(problem):
    """With batch norm behind it, a layer times ten computes the same."""
    given = problem("digits", 0.5)
    rules = [get_allocator(name) for name in ("lamp", "global_l1")]
    before = [rule.allocate(given).tolist() for rule in rules]
    weight = given.context.model.get_parameter(given.budget.structure.layers[2].weights("out")[0].parameter)
    with torch.no_grad():
        weight *= 10.0
        try:
            assert [rule.allocate(given).tolist() for rule in rules] == before
        finally:
            weight /= 10.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95))
def test_knapsack_is_within_a_unit_of_the_best_there_is(problem, seed, share):
    """Where costs are constant and gains fall, no plan on the budget predicts less, but for what a unit is worth."""
    given_ = problem("residual")
    structure = given_.budget.structure  # inner layers: each costs so much a unit, whatever the others do
    least = structure.fraction("flops", [1] * len(structure.layers))
    budget = Budget(structure, "flops", least + share * (1.0 - least), 0.9)
    rng = np.random.default_rng(seed)
    curves = [np.append(np.cumsum(np.sort(rng.exponential(size=n - 1)))[::-1], 0.0) for n in structure.units]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_model, "loss_curves", lambda _context: curves)
        kept = get_allocator("knapsack").allocate(replace(given_, budget=budget))

    def predicted(plan):
        return sum(curve[count - 1] for curve, count in zip(curves, plan, strict=True))

    plans = [
        p for p in itertools.product(*(range(1, n + 1) for n in structure.units)) if budget.cost(p) <= budget.limit
    ]
    worth = max(float(curve[0] - curve[1]) for curve in curves)
    assert predicted(kept) <= min(map(predicted, plans)) + worth


def test_knapsack_sees_through_a_curve_that_is_not_convex(problem, monkeypatch):
    """A layer that loses nothing until it loses all at once is not cut for what its first units seem to be worth."""
    given_ = problem("residual", 0.9)
    cliff = [
        np.array([1.0] * (n - 1) + [0.0]) if i == 2 else np.linspace(0.01, 0.0, n) for i, n in enumerate((4, 6, 8))
    ]
    monkeypatch.setattr(loss_model, "loss_curves", lambda _context: cliff)
    assert get_allocator("knapsack").allocate(given_)[2] == 8


def stairs(kept):
    """A cost of one for every three units of a layer begun."""
    return np.ceil(np.asarray(kept) / 3).sum(axis=-1)


def test_knapsack_buys_whole_stairs(problem, monkeypatch):
    """The second stair of layer 1 is worth 0.5 + 0.4 + 0.3, the third one of layer 2 only 0.55 + 0.05, at one cost."""
    given_ = problem("residual")
    structure = replace(given_.budget.structure, costs={"latency": stairs})
    gains = [(0.0,) * 4, (1, 1, 1, 0.5, 0.4, 0.3), (1, 1, 1, 1, 1, 1, 0.55, 0.05)]
    curves = [np.append(np.cumsum(gain[:0:-1])[::-1], 0.0) for gain in gains]  # the first unit always stays
    monkeypatch.setattr(loss_model, "loss_curves", lambda _context: curves)
    budget = Budget(structure, "latency", 5 / 7, 0.9)
    assert get_allocator("knapsack").allocate(replace(given_, budget=budget)).tolist() == [3, 6, 6]
