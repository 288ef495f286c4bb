"""Parts' times brought to those of whole networks: what must hold whatever was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.pruners.costs.file_fit import chains, edge, line, scales, shares

TIMES = st.floats(0.0, 1e6)
DENSE = np.array([8, 16, 8, 4, 32])


def test_a_line_is_found_whatever_wider_networks_outrun():
    kept = np.array([[1], [2], [3], [4], [5]])
    sums = np.array([[10.0, 0.0], [20.0, 4.0], [31.0, 0.0], [39.0, 8.0], [55.0, 1.0]])
    times = 7.0 + 0.5 * sums[:, 0] - 2.0 * sums[:, 1]
    assert line(kept, sums, times) == pytest.approx([7.0, 0.5, -2.0])
    times[1] *= 100  # no plan keeps so many
    assert line(kept, sums, times)[1] == pytest.approx(0.5, rel=0.02)


def test_scales_are_those_of_the_law_and_1_where_nothing_tells():
    first, last = chains(DENSE, DENSE // 2, 3)
    kept = np.vstack([first, last])
    sums = np.column_stack([kept[:, :2].sum(1), 4 * kept[:, 2:4].sum(1), kept[:, 4], 0 * kept[:, 4]]).astype(float)
    constant, found = scales(sums, 30.0 + sums @ [2.0, 0.25, 1.5, 9.0])
    assert constant == pytest.approx(30.0, rel=0.01)
    assert found == pytest.approx([2.0, 0.25, 1.5, 1.0], rel=0.02)


def test_chains_cut_link_by_link_from_either_end():
    first, last = chains(DENSE, np.array([8, 4, 2, 1, 8]), 3)  # the first layer stays
    assert first.tolist() == [[8, 16, 8, 4, 32], [8, 4, 2, 4, 32], [8, 4, 2, 1, 32], [8, 4, 2, 1, 8]]
    assert last.tolist() == [[8, 16, 8, 4, 32], [8, 16, 8, 4, 8], [8, 16, 8, 1, 8], [8, 4, 2, 1, 8]]


@given(
    parts=hnp.arrays(float, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=TIMES),
    totals=st.lists(TIMES, min_size=6, max_size=6),
)
def test_shares_never_fall_and_add_up_to_what_no_wider_network_outruns(parts, totals):
    totals = np.array(totals[: len(parts)])
    found = shares(parts, totals)
    assert (found >= 0.0).all()
    assert (np.diff(found, axis=0) >= 0.0).all()
    if parts[-1].any():
        assert found.sum(axis=1) == pytest.approx(np.minimum.accumulate(totals[::-1])[::-1], rel=1e-6, abs=1e-6)
    else:
        assert not found.any()


def test_in_the_last_network_every_part_has_its_share():
    parts = np.array([[1.0, 1.0], [2.0, 9.0], [3.0, 10.0], [4.0, 40.0]])
    found = shares(parts, np.array([6.0, 10.0, 22.0, 110.0]))
    assert found[-1] == pytest.approx([10.0, 100.0], rel=0.01)
    assert found[1, 0] > found[1, 1] / 5  # of the first rises the small part takes more than its share of the whole


@given(
    left=hnp.arrays(float, 4, elements=st.floats(0.05, 0.95)), goal=hnp.arrays(float, 4, elements=st.floats(0.01, 1))
)
def test_two_edges_multiplied_are_what_is_cut_on_both_sides(left, goal):
    dense, whole = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 1.0, 1.0, 2.0])
    other = left[::-1]
    both, shared = dense * left * other, whole * goal
    first = edge(dense * left, both, dense, shared, whole)
    second = edge(dense * other, both, dense, shared, whole)
    assert first * second / whole == pytest.approx(shared)
    assert (first <= whole * (1 + 1e-9)).all()
    assert (first >= shared * (1 - 1e-9)).all()


def test_an_edge_of_nothing_is_nothing():
    none = np.zeros(2)
    assert edge(none, none, none, none, none).tolist() == [0.0, 0.0]
