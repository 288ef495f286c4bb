"""Every criterion on every network, and the simple ones against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from secateur.pruners.criteria import criteria, get_criterion, rank, register_criterion, select


@pytest.mark.parametrize("criterion", criteria())
@pytest.mark.parametrize(("name", "cut"), zoo.cases())
def test_scores_are_finite_and_one_a_unit(criterion: str, name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    for layer in structure.layers:
        scores = get_criterion(criterion)(model, layer)
        assert scores.shape == (layer.width,)
        assert np.isfinite(scores).all()
        assert len(set(scores.tolist())) > 1
    for order, layer in zip(rank(model, structure, criterion), structure.layers, strict=True):
        assert sorted(order.tolist()) == list(range(layer.width))


@pytest.mark.parametrize("criterion", criteria())
def test_weights_that_are_larger_score_higher(criterion: str) -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    with torch.no_grad():
        model[0][0].weight[3] *= 100.0
        model[0][0].weight[5] *= 0.0
    order = rank(model, structure, criterion)[0]
    assert (order[0], order[-1]) == (3, 5)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_of_filters(criterion: str, power: int) -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    for layer, weight in zip(structure.layers, (model[0][0].weight, model[2][0].weight, model[5].weight), strict=True):
        expected = torch.linalg.vector_norm(weight.detach().double().flatten(1), power, dim=1)
        np.testing.assert_allclose(get_criterion(criterion)(model, layer), expected, rtol=1e-6)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_summed_over_the_producers_of_a_trunk(criterion: str, power: int) -> None:
    model, structure = zoo.make("downsample"), zoo.structure("downsample", "all")
    trunk = structure.layers[structure.index("block2.conv2")]
    expected = sum(
        torch.linalg.vector_norm(weight.detach().double().flatten(1), power, dim=1)
        for weight in (model.block2.conv2.weight, model.block2.downsample[0].weight)
    )
    np.testing.assert_allclose(get_criterion(criterion)(model, trunk), expected, rtol=1e-6)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_a_unit_of_a_grouped_convolution_counts_all_its_channels(criterion: str, power: int) -> None:
    model, structure = zoo.make("grouped"), zoo.structure("grouped")
    weight = model[0][0].weight.detach().double()  # channels c and c + 4 make one unit
    both = torch.stack([weight[:4].flatten(1), weight[4:].flatten(1)], 1).flatten(1)
    expected = torch.linalg.vector_norm(both, power, dim=1)
    np.testing.assert_allclose(get_criterion(criterion)(model, structure.layers[0]), expected, rtol=1e-6)


@given(
    scores=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    data=st.data(),
)
def test_selection_keeps_the_best_in_order(scores: list[int], data: st.DataObject) -> None:
    order = np.argsort(-np.array(scores), kind="stable")
    width = data.draw(st.integers(1, len(scores)))
    (kept,) = select([order], np.array([width]))
    assert kept.tolist() == sorted(kept.tolist())
    gone = [s for i, s in enumerate(scores) if i not in kept]
    assert len(kept) == width
    assert not gone or min(scores[i] for i in kept) >= max(gone)


def test_ties_keep_their_order() -> None:
    model, structure = zoo.make("vgg"), zoo.structure("vgg")
    with torch.no_grad():
        model[0][0].weight.fill_(0.5)
    assert rank(model, structure, "l1")[0].tolist() == list(range(8))


def test_selections_are_nested() -> None:
    model, structure = zoo.make("digits"), zoo.structure("digits")
    ranking = rank(model, structure, "l1")
    wide, narrow = (select(ranking, structure.widths // part) for part in (2, 4))
    for more, less in zip(wide, narrow, strict=True):
        assert set(less) < set(more)


def test_unknown_criterion() -> None:
    with pytest.raises(ValueError, match=r"no criterion 'l11', only .*l1, l2.* – did you mean l1\?"):
        get_criterion("l11")


def test_a_new_criterion_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.pruners import criteria as module

    monkeypatch.setattr(module, "_CRITERIA", dict(module._CRITERIA))

    @register_criterion("last")
    def last(model, layer):
        return np.arange(layer.width, dtype=float)

    assert "last" in criteria()
    assert rank(zoo.make("vgg"), zoo.structure("vgg"), "last")[0].tolist() == list(range(8))[::-1]
