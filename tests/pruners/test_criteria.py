"""Every criterion on every network, and the simple ones against a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from secateur.pruners.channels.criteria import (
    CRITERIA,
    check_criterion,
    filters,
    rank,
    register_score,
    registry,
    scores,
    select,
    squared_norms,
)
from secateur.pruners.channels.criteria.norms import l1, l2
from secateur.pruners.channels.criteria.registry import Score
from secateur.pruners.channels.slices import channel_layers
from secateur.pruners.context import Context


def context(name: str, cut: str = "inner") -> Context:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    labels = torch.randint(0, zoo.CLASSES, (16,), generator=torch.Generator().manual_seed(0))
    images = torch.randn(16, *structure.input_shape, generator=torch.Generator().manual_seed(1))
    return Context(model.eval(), structure, [(images, labels)])


@pytest.mark.parametrize(("name", "cut"), zoo.small_cases())
def test_every_criterion_orders_every_unit_and_leaves_the_network_untouched(name: str, cut: str) -> None:
    seen = context(name, cut)
    before = {key: tensor.clone() for key, tensor in seen.model.state_dict().items()}
    for criterion in CRITERIA:
        for order, layer in zip(rank(seen, criterion), seen.structure.layers, strict=True):
            assert sorted(order.tolist()) == list(range(layer.units)), criterion
        assert all(torch.equal(tensor, before[key]) for key, tensor in seen.model.state_dict().items()), criterion


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_weights_that_are_larger_score_higher(criterion: str) -> None:
    seen = context("vgg")
    with torch.no_grad():
        seen.model[0][0].weight[3] *= 100.0
        seen.model[0][0].weight[5] *= 0.0
    order = rank(seen, criterion)[0]
    assert (order[0], order[-1]) == (3, 5)


@pytest.mark.parametrize(("score", "power"), [(l1, 1), (l2, 2)])
def test_norms_of_filters(score: Score, power: int) -> None:
    seen = context("vgg")
    weights = (seen.model[0][0].weight, seen.model[2][0].weight, seen.model[5].weight)
    for layer, weight in zip(seen.structure.layers, weights, strict=True):
        expected = torch.linalg.vector_norm(weight.detach().double().flatten(1), power, dim=1)
        np.testing.assert_allclose(score(seen, layer), expected, rtol=1e-6)


@pytest.mark.parametrize(("score", "power"), [(l1, 1), (l2, 2)])
def test_norms_are_summed_over_the_producers_of_a_trunk(score: Score, power: int) -> None:
    seen = context("downsample", "all")
    trunk = seen.structure.layers[seen.structure.index("block2.conv2")]
    expected = sum(
        torch.linalg.vector_norm(weight.detach().double().flatten(1), power, dim=1)
        for weight in (seen.model.block2.conv2.weight, seen.model.block2.downsample[0].weight)
    )
    np.testing.assert_allclose(score(seen, trunk), expected, rtol=1e-6)


@pytest.mark.parametrize(("score", "power"), [(l1, 1), (l2, 2)])
def test_a_unit_of_a_grouped_convolution_counts_all_its_channels(score: Score, power: int) -> None:
    seen = context("grouped")
    weight = seen.model[0][0].weight.detach().double()  # channels c and c + 4 make one unit
    both = torch.stack([weight[:4].flatten(1), weight[4:].flatten(1)], 1).flatten(1)
    expected = torch.linalg.vector_norm(both, power, dim=1)
    np.testing.assert_allclose(score(seen, seen.structure.layers[0]), expected, rtol=1e-6)


@pytest.mark.parametrize("case", [("residual", "all"), ("grouped", "inner"), ("squeeze", "inner")])
def test_filters_measured_a_few_at_a_time_are_as_all_at_once(
    case: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = context(*case)
    layers = channel_layers(seen.structure)
    whole = [[own.square().sum(1).numpy() for own in filters(seen, layer)] for layer in layers]
    monkeypatch.setattr(registry, "TOGETHER", 100)
    for layer, each in zip(layers, whole, strict=True):
        assert np.array_equal(squared_norms(seen, layer), sum(each))


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
    seen = context("vgg")
    with torch.no_grad():
        seen.model[0][0].weight.fill_(0.5)
    assert rank(seen, "l1")[0].tolist() == list(range(8))


def test_selections_are_nested() -> None:
    seen = context("digits")
    ranking = rank(seen, "l1")
    wide, narrow = (select(ranking, seen.structure.units // part) for part in (2, 4))
    for more, less in zip(wide, narrow, strict=True):
        assert set(less) < set(more)


def test_unknown_criterion() -> None:
    for look in (CRITERIA.__getitem__, check_criterion):
        with pytest.raises(ValueError, match=r"no criterion 'l11', only .*l1, l2.* – did you mean l1\?"):
            look("l11")


def test_scores_are_what_the_order_is_by() -> None:
    seen = context("vgg")
    for order, found in zip(rank(seen, "taylor"), scores(seen, "taylor"), strict=True):
        assert np.all(np.diff(found[order]) <= 0.0)
    with pytest.raises(ValueError, match=r"criterion 'obs' orders units, it does not score them: use .*l1, l2, .*"):
        scores(seen, "obs")


def test_a_new_criterion_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_known", dict(CRITERIA._known))

    @register_score("last")
    def last(seen, layer):
        return np.arange(layer.units, dtype=float)

    assert "last" in CRITERIA
    assert rank(context("vgg"), "last")[0].tolist() == list(range(8))[::-1]
