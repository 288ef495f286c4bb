"""The budget: whatever is chosen, the finished plan costs no more and hardly less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import zoo
from secateur.pruners.budget import Budget
from secateur.pruners.structure import PlanError

NAMES = st.sampled_from(zoo.cases())
KINDS = st.sampled_from(["flops", "params"])
ALL_KINDS = st.sampled_from(["flops", "params", "latency"])
FRACTIONS = st.floats(0.02, 1.0)
MOST = st.floats(0.1, 0.95)


def budget(case: tuple[str, str], kind: str, fraction: float, most: float = 0.9) -> Budget:
    try:
        return Budget(zoo.priced(kind, *case), kind, fraction, most)  # type: ignore[arg-type]
    except PlanError:
        assume(False)
        raise


def walk(b: Budget, choices: list[float]) -> list[int]:
    """Kept between each step's bounds, by a choice in [0, 1] for each layer."""
    kept: list[int] = []
    for choice in choices[: len(b.structure.layers)]:
        low, high = b.bounds(kept)
        kept.append(round(low + choice * (high - low)))
    return kept


@settings(max_examples=80, deadline=None)
@given(
    case=NAMES,
    kind=ALL_KINDS,
    fraction=FRACTIONS,
    most=MOST,
    choices=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_every_walk_ends_at_the_budget(case, kind, fraction, most, choices):
    b = budget(case, kind, fraction, most)
    kept = walk(b, choices)
    dense = b.structure.units
    assert b.cost(kept) <= b.limit
    assert np.all(kept >= b.least)
    assert np.all(kept <= dense)
    cut = [i for i, width in enumerate(kept) if width < dense[i]]
    if cut:  # one more channel of the last layer that is not whole would be too much
        more = list(kept)
        more[cut[-1]] += 1
        assert b.cost(more) > b.limit


@settings(max_examples=60, deadline=None)
@given(
    case=NAMES,
    kind=ALL_KINDS,
    fraction=FRACTIONS,
    most=MOST,
    choices=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_bounds_are_what_they_say(case, kind, fraction, most, choices):
    b = budget(case, kind, fraction, most)
    kept = walk(b, choices)
    dense, least = b.structure.units, b.least
    for t in range(len(kept)):
        low, high = b.bounds(kept[:t])
        assert least[t] <= low <= high <= dense[t]
        cheapest = np.concatenate([kept[:t], [high], least[t + 1 :]])
        assert b.cost(cheapest) <= b.limit
        if high < dense[t]:
            cheapest[t] += 1
            assert b.cost(cheapest) > b.limit
        if low < high and t + 1 < len(dense):  # one more would still not spend it, were all the rest whole
            assert b.cost(np.concatenate([kept[:t], [low + 1], dense[t + 1 :]])) > b.limit


@settings(max_examples=80, deadline=None)
@given(
    case=NAMES,
    kind=ALL_KINDS,
    fraction=FRACTIONS,
    most=MOST,
    target=st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=12),
)
def test_fill_spends_the_budget_and_no_more(case, kind, fraction, most, target):
    b = budget(case, kind, fraction, most)
    dense = b.structure.units
    kept = b.fill(np.array(target[: len(dense)]))
    assert b.cost(kept) <= b.limit
    assert np.all(kept >= b.least)
    assert np.all(kept <= dense)
    for i in range(len(dense)):
        if kept[i] < dense[i]:
            more = kept.copy()
            more[i] += 1
            assert b.cost(more) > b.limit


@settings(max_examples=50, deadline=None)
@given(case=NAMES, kind=KINDS, choices=st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_fill_keeps_what_fits_already(case, kind, choices):
    structure = zoo.structure(*case)
    wished = np.array([round(1 + c * (w - 1)) for c, w in zip(choices, structure.units, strict=False)])
    b = budget(case, kind, structure.fraction(kind, wished), 0.999)
    assert b.fill(wished.astype(float)).tolist() == wished.tolist()


def test_fill_keeps_proportions() -> None:
    b = budget(("resnet20", "inner"), "flops", 0.5)
    dense = b.structure.units
    kept = b.fill(np.where(np.arange(9) < 3, 0.2, 0.8) * dense)
    assert kept[:3].max() < 0.3 * 16
    assert (kept[3:] / dense[3:]).min() > 0.6
    uniform = b.fill(dense.astype(float)) / dense
    assert np.ptp(uniform) <= 1 / 16


@pytest.mark.parametrize("case", zoo.cases())
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_budget_that_cannot_be_met_names_the_least_that_can(case: tuple[str, str], kind: str) -> None:
    structure = zoo.structure(*case)
    with pytest.raises(
        PlanError, match=rf"budget.{kind} = 0.001 cannot be met: .* still keeps ([0-9.]+); ask for at "
    ) as e:
        Budget(structure, kind, 0.001, 0.6)  # type: ignore[arg-type]
    least = float(str(e.value).split("still keeps ")[1].split(";")[0])
    assert Budget(structure, kind, least, 0.6).limit > 0  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="cannot be met"):
        Budget(structure, kind, least - 2e-4, 0.6)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.0001, 50.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(PlanError, match=r"budget.flops = .*: a fraction of the dense network in \(0, 1\]"):
        Budget(zoo.structure("vgg"), "flops", fraction)


@pytest.mark.parametrize("most", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_max_sparsity_out_of_range(most: float) -> None:
    with pytest.raises(PlanError, match=r"max_sparsity = .*: must lie in \(0, 1\)"):
        Budget(zoo.structure("vgg"), "flops", 0.5, most)


def test_a_whole_budget_keeps_the_network_whole() -> None:
    b = Budget(zoo.structure("digits", "all"), "params", 1.0)
    dense = b.structure.units.tolist()
    assert walk(b, [0.0] * 12) == dense
    assert b.fill(np.ones(len(dense))).tolist() == dense


@settings(max_examples=50, deadline=None)
@given(case=NAMES, kind=KINDS, choices=st.lists(st.floats(0, 1), min_size=12, max_size=12), layer=st.integers(0, 11))
def test_cost_grows_with_every_width(case, kind, choices, layer):
    structure = zoo.structure(*case)
    kept = [round(1 + c * (w - 1)) for c, w in zip(choices, structure.units, strict=False)]
    layer %= len(kept)
    assume(kept[layer] < structure.units[layer])
    more = list(kept)
    more[layer] += 1
    assert structure.cost(kind, more) > structure.cost(kind, kept)


@settings(max_examples=60, deadline=None)
@given(case=NAMES, kind=ALL_KINDS, fraction=FRACTIONS, choices=st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_widening_costs_nothing_and_leaves_nothing(case, kind, fraction, choices):
    b = budget(case, kind, fraction)
    dense = b.structure.units
    kept = walk(b, choices)
    for t, width in enumerate(kept):
        wider = b.widen(kept[:t], width)
        costs = [b.cost([*kept[:t], w, *dense[t + 1 :]]) for w in range(width, int(dense[t]) + 1)]
        assert wider == width + max(i for i, cost in enumerate(costs) if cost == costs[0])
        assert kind == "latency" or wider == width


def test_latency_without_a_table() -> None:
    with pytest.raises(PlanError, match=r"budget.latency needs the network's table"):
        Budget(zoo.structure("vgg"), "latency", 0.5)
