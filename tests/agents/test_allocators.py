from __future__ import annotations

import numpy as np
import pytest

from secateur.agents import Allocation, allocators, get_allocator
from secateur.networks import digits_resnet
from secateur.pruners.budget import Budget
from secateur.pruners.coupling import find_layers


@pytest.fixture(scope="module")
def structure():
    return find_layers(digits_resnet(), (1, 8, 8))


def straight(structure):
    return lambda: [np.linspace(1.0, 0.0, width + 1) for width in structure.widths]


@pytest.mark.parametrize("name", allocators())
@pytest.mark.parametrize(("kind", "fraction"), [("flops", 0.2), ("flops", 0.5), ("flops", 0.9), ("params", 0.3)])
def test_every_allocator_spends_the_budget_and_no_more(structure, name, kind, fraction):
    budget = Budget(structure, kind, fraction, 0.9)
    allocation = Allocation(budget, lambda widths: -float(widths[0]), straight(structure), 5)
    widths = get_allocator(name).allocate(allocation)
    assert budget.cost(widths) <= budget.limit
    assert structure.fraction(kind, widths) == pytest.approx(fraction, rel=0.015)
    assert np.all(widths >= budget.least)


@pytest.mark.parametrize("name", allocators())
def test_a_whole_budget_leaves_the_network_whole(structure, name):
    budget = Budget(structure, "flops", 1.0, 0.9)
    widths = get_allocator(name).allocate(Allocation(budget, lambda widths: 0.0, straight(structure)))
    assert widths.tolist() == structure.widths.tolist()


def test_random_search_keeps_the_best_of_its_candidates(structure):
    judged = []

    def reward(widths):
        judged.append(widths)
        return float(widths[2])

    allocation = Allocation(Budget(structure, "flops", 0.4), reward, straight(structure), 20)
    best = get_allocator("random").allocate(allocation)
    assert len(judged) == 20
    assert best[2] == max(widths[2] for widths in judged)
    assert len({tuple(widths) for widths in judged}) > 15


def test_the_threshold_is_the_same_for_every_layer(structure):
    rng = np.random.default_rng(0)
    curves = [np.append(np.sort(rng.uniform(size=width))[::-1], 0.0) for width in structure.widths]
    budget = Budget(structure, "flops", 0.5)
    widths = get_allocator("threshold").allocate(Allocation(budget, lambda widths: 0.0, lambda: curves))
    errors = [curve[width] for curve, width in zip(curves, widths, strict=True)]
    before = [curve[width - 1] for curve, width in zip(curves, widths, strict=True)]
    level = max(errors)  # one channel less anywhere is above it, but where the rest of the budget was spent
    assert sum(error <= level <= previous for error, previous in zip(errors, before, strict=True)) >= 5


def test_an_unknown_name_gets_the_near_miss():
    with pytest.raises(ValueError, match="did you mean uniform"):
        get_allocator("uniforms")
