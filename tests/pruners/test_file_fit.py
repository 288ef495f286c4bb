"""Parts' times brought to those of whole networks, and the networks that are timed for it."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.pruners.costs.file_fit import chains, line, scales

DENSE = np.array([8, 16, 8, 4, 32])


def test_a_line_is_found_whatever_wider_networks_outrun():
    kept = np.array([[1], [2], [3], [4], [5]])
    sums = np.array([[10.0, 0.0], [20.0, 4.0], [31.0, 0.0], [39.0, 8.0], [55.0, 1.0]])
    times = 7.0 + 0.5 * sums[:, 0] - 2.0 * sums[:, 1]
    assert line(kept, sums, times) == pytest.approx([7.0, 0.5, -2.0])
    times[1] *= 100  # no plan keeps so many
    assert line(kept, sums, times)[1] == pytest.approx(0.5, rel=0.02)


def test_scales_are_those_of_the_law_and_the_common_one_where_nothing_tells():
    first, last = chains(DENSE, DENSE // 2, 3)
    kept = np.vstack([first, last])
    sums = np.column_stack([kept[:, :2].sum(1), 4 * kept[:, 2:4].sum(1), kept[:, 4], 0 * kept[:, 4]]).astype(float)
    constant, found = scales(sums, 30.0 + sums @ [2.0, 0.25, 1.5, 9.0], alike=1e-4)
    assert constant == pytest.approx(30.0, rel=0.01)
    assert found[:3] == pytest.approx([2.0, 0.25, 1.5], rel=0.02)
    assert 0.25 < found[3] < 2.0


def test_what_timings_do_not_clearly_say_of_a_group_is_left_as_it_is_with_all():
    """Nine links, each 1 % of the time, on a clock that is off by 2 %: the sum is told, who saves it is not."""
    random = np.random.default_rng(0)
    there = np.tri(10, 9, -1)
    sums = np.vstack([1.0 - there, 1.0 - there[:, ::-1]])
    law = np.linspace(0.5, 1.5, 9)
    times = 90.0 + sums @ law
    off, together = [], []
    for _ in range(20):
        timed = times * random.normal(1.0, 0.02, len(times))
        each, held = (scales(sums, timed, alike)[1] for alike in (1e-4, 0.1))
        together.append(held.sum())
        off.append([np.abs(found - law).max() for found in (each, held)])
    assert np.mean(together) == pytest.approx(law.sum(), rel=0.1)
    each, held = np.mean(off, axis=0)
    assert held < 0.75 < 1.5 < each


def test_chains_cut_link_by_link_from_either_end():
    first, last = chains(DENSE, np.array([8, 4, 2, 1, 8]), 3)  # the first layer stays
    assert first.tolist() == [[8, 16, 8, 4, 32], [8, 4, 2, 4, 32], [8, 4, 2, 1, 32], [8, 4, 2, 1, 8]]
    assert last.tolist() == [[8, 16, 8, 4, 32], [8, 16, 8, 4, 8], [8, 16, 8, 1, 8], [8, 4, 2, 1, 8]]
