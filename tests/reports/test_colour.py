from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secateur.reports.colour import colour_selectivity, filter_tiles

WEIGHTS = arrays(np.float64, (2, 3, 3, 3), elements=st.floats(-1.0, 1.0).map(lambda x: round(x, 3)))


def noise(count: int, size: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, size, size))


def test_grey_is_0_and_opponent_is_1() -> None:
    grey = np.repeat(noise(4).mean(1, keepdims=True), 3, axis=1)
    opponent = noise(4) - noise(4).mean(1, keepdims=True)
    assert colour_selectivity(grey) == pytest.approx(0.0, abs=1e-12)
    assert colour_selectivity(opponent) == pytest.approx(1.0)


def test_half_grey_half_opponent() -> None:
    """Orthogonal parts of equal energy, and a single colour: 1/3 of it is on the axis."""
    half = np.zeros((1, 3, 1, 2))
    half[0, :, 0, 0] = 1.0 / np.sqrt(3.0)
    half[0, :, 0, 1] = np.array([1.0, -1.0, 0.0]) / np.sqrt(2.0)
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 5.0
    assert colour_selectivity(half)[0] == pytest.approx(0.5)
    assert colour_selectivity(red)[0] == pytest.approx(2.0 / 3.0)


def test_weights_drawn_at_random_have_two_thirds() -> None:
    assert colour_selectivity(noise(4000)).mean() == pytest.approx(2.0 / 3.0, abs=0.01)


def test_it_is_one_less_the_energy_left_when_the_image_is_made_grey() -> None:
    """A filter answers grey images as its projection does: the oracle is that projection, as a matrix."""
    weights = noise(5)
    axis = np.ones((3, 1)) / np.sqrt(3.0)
    projected = np.einsum("ij,njhw->nihw", axis @ axis.T, weights)
    energies = [np.square(w).sum((1, 2, 3)) for w in (projected, weights)]
    assert colour_selectivity(weights) == pytest.approx(1.0 - energies[0] / energies[1])


@given(WEIGHTS, st.floats(0.01, 100.0), st.permutations(range(3)), st.booleans())
def test_scale_sign_and_the_order_of_colours_and_places_do_not_matter(weights, scale, colours, negative) -> None:
    found = colour_selectivity(weights)
    assert np.all((found >= 0.0) & (found <= 1.0))
    changed = (-scale if negative else scale) * weights[:, colours, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(colour_selectivity(changed), found, atol=1e-9)


def test_what_counts_is_what_works_on_the_pixels() -> None:
    std = [0.2, 0.5, 1.0]
    grey = np.ones((1, 3, 3, 3)) * np.array(std)[:, None, None]
    assert colour_selectivity(grey, std)[0] == pytest.approx(0.0, abs=1e-12)
    assert colour_selectivity(grey)[0] > 0.1


def test_a_dead_filter_has_none() -> None:
    assert colour_selectivity(np.zeros((1, 3, 3, 3)))[0] == 0.0


@given(WEIGHTS)
def test_tiles_are_images_with_zero_at_mid_grey(weights) -> None:
    tiles = filter_tiles(weights)
    assert tiles.shape == (2, 3, 3, 3)
    assert np.all((tiles >= 0.0) & (tiles <= 1.0))
    for tile, filter_ in zip(tiles, weights, strict=True):
        largest = np.abs(filter_).max()
        if largest > 0.0:
            assert np.abs(tile - 0.5).max() == pytest.approx(0.5)
            np.testing.assert_allclose((np.moveaxis(tile, -1, 0) - 0.5) * 2 * largest, filter_, atol=1e-12)
        else:
            assert np.all(tile == 0.5)


@pytest.mark.parametrize(("shape", "std"), [((2, 1, 3, 3), [1.0] * 3), ((2, 3, 3), [1.0] * 3), ((2, 3, 3, 3), [1.0])])
def test_anything_but_three_colours_is_refused(shape, std) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 3, height, width\)"):
        colour_selectivity(np.ones(shape), std)
