"""The budget: whatever is chosen, the finished plan costs no more and hardly less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import zoo
from secateur.configs.amounts import told
from secateur.pruners.budget import Budget
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.loss_model import LossModel, best_steps
from secateur.pruners.structure import Kept, Layer, PlanError, Structure

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
        low, high = b.bounds_at(kept)
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
    cut = [i for i, count in enumerate(kept) if count < dense[i]]
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
        low, high = b.bounds_at(kept[:t])
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


@pytest.mark.parametrize("case", zoo.few_cases())
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
def test_cost_grows_with_every_unit(case, kind, choices, layer):
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
    for t, count in enumerate(kept):
        wider = b.widen(kept[:t], count)
        costs = [b.cost([*kept[:t], n, *dense[t + 1 :]]) for n in range(count, int(dense[t]) + 1)]
        assert wider == count + max(i for i, cost in enumerate(costs) if cost == costs[0])
        assert kind == "latency" or wider == count


SEVERAL = st.dictionaries(st.sampled_from(["params", "latency", "macs"]), FRACTIONS, min_size=1)


def several(case: tuple[str, str], fraction: float, besides: dict[str, float]) -> Budget:
    """Of FLOPs and more; `macs` is a cost that nobody knows of."""
    structure = zoo.priced("latency", *case)
    slopes = np.random.default_rng(0).uniform(1, 9, len(structure.layers))
    costs = {**structure.costs, "macs": lambda kept: (np.asarray(kept) ** 2 * slopes).sum(axis=-1)}
    try:
        return Budget(replace(structure, costs=costs), "flops", fraction, besides=besides)  # type: ignore[arg-type]
    except PlanError:
        assume(False)
        raise


def check_all_met(b: Budget, kept: Kept | list[int]) -> None:
    for alone in b.each:
        assert alone.cost(kept) <= alone.limit
    assert np.all(kept >= b.least)
    assert np.all(kept <= b.most)


@settings(max_examples=60, deadline=None)
@given(
    case=NAMES,
    fraction=FRACTIONS,
    besides=SEVERAL,
    choices=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_of_several_budgets_every_plan_meets_all(case, fraction, besides, choices):
    b = several(case, fraction, besides)
    dense = b.structure.units
    wished = 0.01 + np.array(choices[: len(dense)])
    scores = [
        np.linspace(wish, 0, len(layer.choices) - 1) for wish, layer in zip(wished, b.structure.layers, strict=True)
    ]
    for kept in (np.array(walk(b, choices)), b.fill(wished * dense), best_steps(b, scores)):
        check_all_met(b, kept)
        cut = [i for i, count in enumerate(kept) if count < dense[i]]
        if (
            cut
        ):  # and spends what it may: one more of the last layer that is not whole would be too much for one of them
            more = kept.copy()
            more[cut[-1]] += 1
            assert any(alone.cost(more) > alone.limit for alone in b.each)


@settings(max_examples=30, deadline=None)
@given(case=NAMES, fraction=st.floats(0.1, 0.9), besides=SEVERAL)
@example(case=("bias_and_norm", "inner"), fraction=0.4375, besides={"latency": 0.453125})
def test_of_several_budgets_the_best_mix_says_what_a_step_costs(case, fraction, besides):
    b = several(case, fraction, besides)
    losses = LossModel.even(b)
    kept = best_steps(b, losses.gains(b))
    check_all_met(b, kept)
    for alone in b.each:  # where one of them binds, its own best steps are those of all
        plan = best_steps(alone, losses.gains(alone))
        within = all(other.cost(plan) <= other.limit for other in b.each)
        assert not within or losses.predict(kept) <= losses.predict(plan)


def test_budgets_that_bind_together_are_met_at_prices_between() -> None:
    b = Budget(zoo.structure("resnet20"), "flops", 0.5, besides={"params": 0.5})
    losses = LossModel.even(b)
    found = {
        name: float(losses.predict(best_steps(b, losses.gains(one))))
        for name, one in (("flops", b.each[0]), ("params", b.each[1]), ("both", b))
    }
    assert found["both"] < 0.8 * min(found["flops"], found["params"])


def test_budgets_as_a_config_says_them() -> None:
    structure = zoo.structure("resnet20")
    whole = structure.cost("params", structure.units)
    b = Budget.asked(structure, {"flops": 0.5, "params": "150k"})
    assert b.fractions == {"flops": 0.5, "params": 150_000 / whole}
    assert b.limit == Budget(structure, "flops", 0.5).limit
    with pytest.raises(PlanError, match=r"budget.params = 1G: the dense network's is .*, and nothing would be pruned"):
        Budget.asked(structure, {"params": "1G"})
    with pytest.raises(PlanError, match=r"budget.params = .* cannot be met.* ask for at least that \(.*, where 1k was"):
        Budget.asked(structure, {"flops": 0.95, "params": "1k"}, 0.1)


@pytest.mark.parametrize("case", zoo.few_cases())
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_the_least_amount_that_can_be_met_is_named(case: tuple[str, str], kind: str) -> None:
    structure = zoo.structure(*case)
    half = told(kind, structure.cost(kind, structure.units) / 2)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="cannot be met") as e:
        Budget.asked(structure, {kind: half}, 0.05)  # type: ignore[dict-item]
    said = str(e.value).split("at least that (")[1].split(",")[0]
    least = Budget.asked(structure, {kind: said}, 0.05)  # type: ignore[dict-item]
    assert least.cost(least.least) <= least.limit <= 1.002 * least.cost(least.least)


def test_latency_without_a_table() -> None:
    with pytest.raises(PlanError, match=r"budget.latency: this network's latency is not counted, only flops, params"):
        Budget(zoo.structure("vgg"), "latency", 0.5)


def coarse(structure: Structure, seed: int) -> Structure:
    """The same layers with some of their choices."""
    rng = np.random.default_rng(seed)

    def some(layer: Layer) -> tuple[int, ...]:
        inner = rng.choice(np.arange(1, layer.units), rng.integers(0, layer.units), replace=False)
        return (*sorted(inner.tolist()), layer.units)

    layers = tuple(replace(layer, choices=some(layer)) for layer in structure.layers)
    return replace(structure, layers=layers)


COARSE = {
    "case": NAMES,
    "kind": ALL_KINDS,
    "fraction": FRACTIONS,
    "seed": st.integers(0, 1000),
    "wish": st.lists(st.floats(0, 1), min_size=12, max_size=12),
}


def coarse_budget(case, kind, fraction, seed) -> Budget:
    try:
        return Budget(coarse(zoo.priced(kind, *case), seed), kind, fraction, 0.95)
    except PlanError:
        assume(False)
        raise


@settings(max_examples=100, deadline=None)
@given(**COARSE)
def test_of_coarse_choices_the_budget_is_filled_with_choices_and_no_step_more_fits(case, kind, fraction, seed, wish):
    b = coarse_budget(case, kind, fraction, seed)
    layers = b.structure.layers
    kept = b.fill(np.array([w * layer.units + 1e-3 for w, layer in zip(wish, layers, strict=False)]))
    assert b.cost(kept) <= b.limit
    for i, layer in enumerate(layers):
        assert kept[i] in layer.choices
        assert b.least[i] <= kept[i] <= b.most[i]
        if kept[i] < b.most[i]:
            more = kept.copy()
            more[i] = next(n for n in layer.choices if n > kept[i])
            assert b.cost(more) > b.limit


@settings(max_examples=100, deadline=None)
@given(**COARSE)
def test_every_walk_over_coarse_choices_ends_at_the_budget(case, kind, fraction, seed, wish):
    b = coarse_budget(case, kind, fraction, seed)
    kept: list[int] = []
    for w, layer in zip(wish, b.structure.layers, strict=False):
        low, high = b.bounds_at(kept)
        assert low in layer.choices
        assert high in layer.choices
        kept.append(b.structure.snap(len(kept), low + w * (high - low)))
        assert low <= kept[-1] <= high
    assert b.cost(kept) <= b.limit
    not_whole = [i for i, n in enumerate(kept) if n < b.most[i]]
    if not_whole:
        more, last = list(kept), not_whole[-1]
        more[last] = next(n for n in b.structure.layers[last].choices if n > kept[last])
        assert b.cost(more) > b.limit


def test_bounds_of_layers_hold_and_the_last_pattern_counts() -> None:
    structure = zoo.structure("resnet20")
    b = Budget(structure, "flops", 0.5, 0.9, {"layer1.*": (0.25, 0.5), "layer1.2.*": (0.0, 0.125)})
    assert b.least.tolist() == [8, 8, 14, 4, 4, 4, 7, 7, 7]
    assert b.most.tolist() == [12, 12, 16, 32, 32, 32, 64, 64, 64]
    for target in (np.ones(9), structure.units.astype(float), 1.0 * (np.arange(9) < 3) + 1e-6):
        kept = b.fill(target)
        assert np.all((b.least <= kept) & (kept <= b.most))
        assert b.cost(kept) <= b.limit
    kept = walk(b, [0.0, 1.0, 0.5] * 3)
    assert np.all((b.least <= kept) & (np.array(kept) <= b.most))


def test_a_bound_that_no_choice_lies_within_is_refused() -> None:
    structure = find_layers(zoo.make("vgg"), zoo.RGB, round_to=4)  # 4, 8 / 4, 6 / 4, 8, 10
    message = r"layer 2.0: none of its choices \(4 … 6 of 6 units\) has a sparsity in \[0.4, 0.9\]: widen layers.bounds"
    with pytest.raises(PlanError, match=message):
        Budget(structure, "flops", 0.9, 0.9, {"2.0": (0.4, 0.9)})


def test_a_bound_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(PlanError, match=r"layers.bounds names '3\.\*', which fits no layer: they are 0.0, 2.0, 5"):
        Budget(zoo.structure("vgg"), "flops", 0.5, 0.9, {"2.*": (0.0, 0.5), "3.*": (0.0, 0.5)})
