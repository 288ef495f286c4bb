"""Axes with round numbers, marks where the values are, and fronts that a brute-force search finds, too."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secateur.pruners.plan import LayerPlan
from secateur.reports.charts import Beside, Cost, beside_chart, course_chart, layers_chart, leads_chart, pareto_front
from secateur.reports.run import Figures
from secateur.reports.svg import SHAPES, Look, Panel, Scale, look, number, spread, ticks
from secateur.reports.svg import mark as drawn_mark

REAL = st.floats(-1e6, 1e6, allow_nan=False)


@given(REAL, st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_evenly_apart_and_hold_the_range(low, width, most):
    found = ticks(low, low + width, most)
    steps = [b - a for a, b in pairwise(found)]
    assert found[0] <= low + 1e-6 * width
    assert found[-1] >= low + width - 1e-6 * width
    assert len(found) <= most + 3
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=1e-9) for step in steps)


@given(st.lists(REAL, min_size=1), st.floats(1e-3, 10))
def test_the_range_holds_all_values(values, least):
    low, high = spread(values, least=least)
    assert low < min(values)
    assert high > max(values)
    assert spread(values, least=least, most=max(values))[1] == max(values)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(pairs):
    points = [Cost("a", "", float(cost), float(accuracy)) for cost, accuracy in pairs]
    front = {(point.cost, point.accuracy) for point in pareto_front(points)}
    assert front == {
        (p.cost, p.accuracy)
        for p in points
        if not any(
            q.cost <= p.cost and q.accuracy >= p.accuracy and (q.cost, q.accuracy) != (p.cost, p.accuracy)
            for q in points
        )
    }


def test_a_mark_is_where_its_value_is():
    scale = Scale(0.0, 100.0, 50.0, 150.0)
    assert [scale(value) for value in (0.0, 25.0, 100.0)] == [50.0, 75.0, 150.0]
    panel = Panel("label", (0.0, 10.0), (0.0, 10.0), "x", "y")
    panel.mark(10.0, 0.0, "the last", Look())
    assert 'cx="426"' in panel.parts[0]  # the right edge
    assert 'cy="210"' in panel.parts[0]  # the lowest tick
    assert "the last" in panel.parts[0]


def test_no_two_series_differ_in_colour_alone():
    looks = [look(i) for i in range(12)]
    assert len({(one.shape, one.hollow) for one in looks}) == 12
    for shape in SHAPES:
        assert "NaN" not in drawn_mark(1.0, 2.0, "", Look(shape=shape))


def test_numbers_have_as_many_digits_as_tell():
    assert [number(value) for value in (0.0, -0.25, 12345.0, 2.5e9)] == ["0", "−0.25", "12,345", "2.5e+09"]


def layers(*pairs: tuple[int, int]) -> list[LayerPlan]:
    return [
        LayerPlan(name=f"layer{i}", sparsity=1 - kept / units, kept=kept, units=units, members=[])
        for i, (kept, units) in enumerate(pairs)
    ]


def test_layers_are_as_wide_as_they_are():
    text = layers_chart(layers((8, 16), (64, 64), (0, 32)), "channels")
    before = [float(width) for width in re.findall(r'width="([\d.]+)"[^>]*class="before"', text)]
    after = [float(width) for width in re.findall(r'width="([\d.]+)"[^>]*class="after"', text)]
    assert [b / max(before) for b in before] == pytest.approx([0.25, 1.0, 0.5])
    assert [a / max(before) for a in after] == pytest.approx([0.125, 1.0])  # of nothing kept there is nothing
    assert "in proportion to" in text
    wide = layers_chart(layers((100, 10_000), (4, 4)), "weights")
    assert "to the root of" in wide


def test_plans_beside_have_a_mark_a_layer():
    text = beside_chart(layers((8, 16), (64, 64)), "ddpg", [Beside("uniform", [4, 16])])
    assert re.findall(r'aria-label="(\w+, layer\d: [^"]+)"', text) == [
        "uniform, layer0: 4 of 16",
        "uniform, layer1: 16 of 64",
        "ddpg, layer0: 8 of 16",
        "ddpg, layer1: 64 of 64",
    ]
    assert beside_chart(layers((8, 16)), "ddpg", []) == ""


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_best_so_far_never_falls(qualities):
    assume(max(qualities) > min(qualities) or len(qualities) == 1)
    episodes = [
        {"episode": i, "quality": q, "budget": 0.5, "accuracy": 50.0, "flops": 0.5} for i, q in enumerate(qualities)
    ]
    text = course_chart(episodes, 0.5, None)
    (line,) = re.findall(r'points="([^"]+)" class="line s1"', text)
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert all(b <= a + 0.011 for a, b in pairwise(heights))  # y grows downwards
    assert text.count('class="mark s5"') == len(qualities) + 1  # and one in the legend


def test_leads_reach_two_standard_errors_to_each_side():
    rows = [
        Figures(allocator="ddpg"),
        Figures(allocator="uniform", seed=0, test_lead=2.0, test_lead_standard_error=0.5),
        Figures(allocator="deep", seed=0),  # of which no lead is known
    ]
    text = leads_chart(rows, "top-1 %")
    ((low, high),) = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)"', text)
    (middle,) = re.findall(r'<circle cx="([\d.]+)"', text)
    (zero,) = re.findall(r'<line x1="([\d.]+)"[^>]*class="zero"', text)
    unit = (float(middle) - float(zero)) / 2.0
    assert [float(middle) - float(low), float(high) - float(middle)] == pytest.approx([unit, unit], abs=0.05)
    assert leads_chart(rows[:1], "top-1 %") == ""
