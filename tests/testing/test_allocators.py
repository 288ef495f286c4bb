"""Every allocator keeps the rules, and every rule catches who breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from secateur.agents import ALLOCATORS, Allocator, SearchProblem, register_allocator
from secateur.agents.allocators.searches import random_plan
from secateur.configs.schema import LayersConfig
from secateur.pruners.structure import Kept
from secateur.testing import ALLOCATOR_RULES, check_allocator, toy_context


@pytest.mark.parametrize("name", ALLOCATORS)
def test_every_allocator_keeps_the_rules(name: str):
    needs = ALLOCATORS[name].needs
    if needs is not None:
        pytest.importorskip(needs)
    check_allocator(name)


def test_a_budget_of_parameters_is_kept_too():
    check_allocator("knapsack", toy_context("channels", "plain"), kind="params", fractions=(0.5,))


@pytest.fixture
def known() -> Iterator[None]:
    before = dict(ALLOCATORS._known)
    yield
    ALLOCATORS._known.clear()
    ALLOCATORS._known.update(before)


def nothing(problem: SearchProblem) -> Kept:
    return problem.budget.least


def everything(problem: SearchProblem) -> Kept:
    return problem.budget.structure.units


def fractional(problem: SearchProblem) -> Kept:
    return problem.dense * problem.budget.fraction


def between_choices(problem: SearchProblem) -> Kept:
    return np.full(len(problem.dense), 3)


def from_the_world(problem: SearchProblem) -> Kept:
    return problem.budget.fill(problem.dense * np.random.uniform(0.1, 1.0, len(problem.dense)))


def without_end(problem: SearchProblem) -> Kept:
    plans = [random_plan(problem) for _ in range(40)]
    list(problem.evaluate(plans))
    return plans[0]


def forgetful(problem: SearchProblem) -> Kept:
    plan = problem.budget.fill(problem.dense)
    list(problem.evaluate([plan, plan]))
    return plan


def asking_too_much(problem: SearchProblem) -> Kept:
    list(problem.evaluate([problem.budget.structure.units]))
    return problem.budget.fill(problem.dense)


def trains_the_network(problem: SearchProblem) -> Kept:
    problem.context.model.train()
    return problem.budget.fill(problem.dense)


BREAKERS: list[tuple[str, Callable[[SearchProblem], Kept], bool, str]] = [
    ("plan", fractional, False, "no integers"),
    ("choices", between_choices, False, "3 is no choice"),
    ("budget", everything, False, "the limit is"),
    ("budget", asking_too_much, True, "the limit is"),
    ("spent", nothing, False, r"budget\.spend"),
    ("candidates", forgetful, False, "searches=True"),
    ("candidates", forgetful, True, "evaluated again"),
    ("candidates", without_end, True, "were allowed"),
    ("deterministic", from_the_world, False, "draw from problem.rng alone"),
    ("untouched", trains_the_network, False, "training mode"),
]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("rule", "allocate", "searches", "found"), BREAKERS)
def test_who_breaks_a_rule_is_told_which(
    rule: str, allocate: Callable[[SearchProblem], Kept], searches: bool, found: str
):
    register_allocator("broken", searches=searches)(allocate)
    with pytest.raises(AssertionError, match=f"allocator broken, channels.*breaks the rule '{rule}'.*({found})"):
        check_allocator("broken", toy_context(config=LayersConfig(round_to=2)), fractions=(0.6,), candidates=3)


def test_every_rule_is_broken_by_someone():
    assert {rule for rule, *_ in BREAKERS} == {*ALLOCATOR_RULES, "untouched"}


def test_an_allocator_is_registered():
    with pytest.raises(AssertionError, match=r"rule 'registered'.*register_allocator"):
        check_allocator(Allocator("mine", nothing, searches=False))
    with pytest.raises(AssertionError, match=r"rule 'registered'.*holds another one"):
        check_allocator(Allocator("knapsack", nothing, searches=False))
