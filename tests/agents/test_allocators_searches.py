"""Searches must find: better plans than chance, and better than where they began."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secateur.agents import get_allocator
from secateur.agents.allocators.searches import move, random_plan, random_plans
from secateur.pruners.loss_model import LossModel


class Separable:
    """Every layer has a number of units it likes; the plan that suits all lies on the budget."""

    def __init__(self, budget, seed):
        drawn = np.random.default_rng(1000 + seed).uniform(0.2, 1.0, len(budget.structure.units))
        self.best = budget.fill(drawn * budget.structure.units)
        self.dense = budget.structure.units
        self.asked = []

    def __call__(self, kept):
        self.asked.append(kept)
        return -float(np.square((kept - self.best) / self.dense).mean())


def found(problem, name, seed, candidates=100):
    """The quality of what a search finds, of where it began, and all it asked."""
    quality = Separable(problem().budget, seed)
    given = problem(quality=quality, candidates=candidates, rng=np.random.default_rng(seed))
    value = quality(get_allocator(name).allocate(given))
    return value, quality(quality.asked[0])


def test_hill_climbing_comes_near_the_optimum_and_beats_chance_every_time(problem):
    climbed = [found(problem, "hill_climb", seed)[0] for seed in range(5)]
    drawn = [found(problem, "random", seed)[0] for seed in range(5)]
    assert all(climb > draw for climb, draw in zip(climbed, drawn, strict=True))
    assert np.mean(climbed) > 0.25 * np.mean(drawn)  # both are below 0, the optimum
    assert max(climbed) > -0.003  # off by a twentieth of a layer on average


def test_evolution_improves_on_its_start_and_on_chance(problem):
    pairs = [found(problem, "evolution", seed) for seed in range(5)]
    drawn = [found(problem, "random", seed)[0] for seed in range(5)]
    assert all(value > start for value, start in pairs)
    assert np.mean([value for value, _ in pairs]) > np.mean(drawn)


def test_a_model_of_the_losses_that_learns_finds_what_some_layers_cost(problem):
    """Where some layers cost many times what was predicted of them."""
    first = LossModel.of(problem().context)
    scale = first.predict(problem().budget.least)
    for seed in range(3):
        truth = np.random.default_rng(seed).permutation(np.geomspace(0.1, 10.0, len(first.factors)))

        def quality(kept, truth=truth):
            return -float(first.terms(kept) @ truth / scale)

        ends = {}
        for name in ("knapsack", "random", "adaptive_knapsack"):
            given = problem(quality=quality, candidates=40, rng=np.random.default_rng(seed))
            ends[name] = quality(get_allocator(name).allocate(given))
        assert ends["adaptive_knapsack"] > ends["random"]
        assert ends["adaptive_knapsack"] > 0.9 * ends["knapsack"]  # both are below 0


@pytest.mark.parametrize("name", ["hill_climb", "evolution", "adaptive_knapsack"])
def test_searches_begin_at_the_knapsack(problem, name):
    asked = []
    given = problem(quality=lambda kept: asked.append(kept.tolist()) or 0.0, candidates=3)
    start = get_allocator("knapsack").allocate(given).tolist()
    assert get_allocator(name).allocate(given).tolist() == start  # nothing is better: the first of equals stays
    assert asked[0] == start


def test_random_search_keeps_the_best_of_its_candidates(problem):
    evaluated = []
    given = problem(quality=lambda kept: evaluated.append(kept) or float(kept[2] - 16), candidates=20)
    best = get_allocator("random").allocate(given)
    assert len({tuple(kept) for kept in evaluated}) == 20
    assert best[2] == max(kept[2] for kept in evaluated)


def together(problem, name, candidates):
    """How many plans a search has evaluated at a time."""
    sizes = []
    given = problem(quality=Separable(problem().budget, 0), candidates=candidates)
    evaluate = given.evaluate
    get_allocator(name).allocate(replace(given, evaluate=lambda plans: sizes.append(len(plans)) or evaluate(plans)))
    return [size for size in sizes if size]


def test_generations_are_evaluated_together(problem):
    assert together(problem, "random", 20) == [20]
    assert together(problem, "hill_climb", 20) == [1] * 20
    first, *generations = together(problem, "evolution", 30)
    assert first == 1
    assert sum(generations) == 29
    assert generations[0] == max(generations) == 4 + int(3 * np.log(6))  # of CMA-ES for six layers
    assert len(generations) < 8


def test_random_plans_differ_and_come_in_the_order_drawn(problem):
    def drawing(seed):
        return problem(rng=np.random.default_rng(seed))

    plans = random_plans(drawing(5), 20)
    assert len({tuple(plan) for plan in plans}) == 20
    same = drawing(5)
    assert [plan.tolist() for plan in plans[:2]] == [random_plan(same).tolist() for _ in range(2)]
    assert [plan.tolist() for plan in random_plans(drawing(5), 7)] == [plan.tolist() for plan in plans[:7]]
    assert [plan.tolist() for plan in random_plans(drawing(6), 7)] != [plan.tolist() for plan in plans[:7]]


def test_more_random_plans_than_there_are_is_an_error_that_says_how_many(problem):
    with pytest.raises(ValueError, match=r"9 random plans asked, but only 1 differ .*ask for fewer"):
        random_plans(problem(fraction=1.0), 9)


@pytest.mark.parametrize("seed", range(20))
def test_a_move_takes_from_one_and_gives_to_the_other(problem, seed):
    budget = problem().budget
    dense, rng = budget.structure.units, np.random.default_rng(seed)
    kept = budget.fill(dense * rng.uniform(0.2, 1.0, len(dense)))
    giver, taker = rng.choice(len(kept), 2, replace=False)
    count = int(rng.integers(1, kept[giver] + 1))
    moved = move(budget, kept, giver, taker, count)
    assert budget.cost(moved) <= budget.limit
    assert max(kept[giver] - count, budget.least[giver]) <= moved[giver] <= kept[giver]
    assert np.all(np.delete(moved - kept, giver) >= 0)
    given = kept.copy()
    given[giver] = max(kept[giver] - count, budget.least[giver])
    given[taker] = moved[taker] + 1
    # the taker has all that the giver paid for, before anything else is spent
    assert moved[taker] == dense[taker] or budget.cost(given) > budget.limit


def test_nothing_moves_where_giver_and_taker_are_the_same(problem):
    budget = problem().budget
    kept = budget.fill(budget.structure.units.astype(float))
    assert move(budget, kept, 2, 2, 3).tolist() == kept.tolist()
