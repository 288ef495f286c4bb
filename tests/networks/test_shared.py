"""Weight sharing: k-means against the exact optimum, values trained by summed gradients and told by the weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.networks.quantise.on_grid import GRIDS, OnGrid
from secateur.networks.quantise.shared import Shared, Values, kmeans
from secateur.training.step import in_training

SEEDS = st.integers(0, 2**31)


def lost(points: Tensor, mass: Tensor, values: Tensor) -> float:
    nearest = (points[:, None] - values).square().amin(1)
    return float((nearest * mass).sum())


@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_t"])
def test_values_lose_little_more_than_the_best_there_are(draw: str) -> None:
    """The optimum in one dimension is found by dynamic programming (kmeans1d)."""
    kmeans1d = pytest.importorskip("kmeans1d", reason="the oracle; pip install kmeans1d")
    random = np.random.default_rng(0)
    points = getattr(random, draw)(*([5] if draw == "standard_t" else []), size=2000)
    for k, room in ((4, 1.03), (8, 1.03), (16, 1.05), (64, 1.25)):
        best = kmeans1d.cluster(points.tolist(), k)
        least = float(((np.array(best.centroids)[best.clusters] - points) ** 2).sum())
        x = torch.from_numpy(points)
        found = lost(x, torch.ones_like(x), kmeans(x, torch.ones_like(x), k))
        assert least * (1 - 1e-9) <= found <= room * least


@settings(max_examples=60)
@given(seed=SEEDS, n=st.integers(1, 40), k=st.integers(1, 12), repeated=st.booleans())
def test_every_value_is_the_mean_of_what_is_nearest_to_it(seed: int, n: int, k: int, repeated: bool) -> None:
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.integers(-3, 4, n).astype(float) if repeated else random.normal(size=n))
    mass = torch.from_numpy(random.uniform(0.1, 3.0, n))
    values = kmeans(x, mass, k)
    assert 1 <= len(values) <= k
    assert bool((values.diff() > 0).all())
    even = torch.linspace(float(x.min()), float(x.max()), k, dtype=x.dtype)
    assert lost(x, mass, values) <= lost(x, mass, even) + 1e-12
    if len(x.unique()) <= k:
        assert lost(x, mass, values) == 0.0
        return
    codes = (x[:, None] - values).abs().argmin(1)
    for code in codes.unique().tolist():
        own = codes == code
        assert float(values[code]) == pytest.approx(float((x * mass)[own].sum() / mass[own].sum()), abs=1e-9)


def test_mass_draws_values_and_what_has_none_does_not() -> None:
    x, mass = torch.tensor([0.0, 1.0, 10.0, 99.0]).double(), torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    assert kmeans(x, mass, 2).tolist() == [0.5, 10.0]
    assert kmeans(x, torch.tensor([1.0, 3.0, 1.0, 0.0]).double(), 2).tolist() == [0.75, 10.0]


def test_neighbouring_numbers_are_told_apart() -> None:
    table = torch.tensor([1.0, np.nextafter(np.float32(1), np.float32(2)), -0.5]).sort().values
    values = Values(table, torch.float32)
    assert torch.equal(values.values(values.codes(table)), table)


def shared_net() -> tuple[nn.Module, OnGrid]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    pruned = torch.rand(12, 8) < 0.4
    model[0].weight.data[pruned] = 0.0
    hold = OnGrid({"0.weight": 2, "2.weight": 3}, GRIDS["shared"], {"0.weight": pruned})
    hold(model)
    return model, hold


def test_weights_are_as_few_as_the_bits_say_and_zero_is_one_of_them() -> None:
    model, hold = shared_net()
    assert model[0].weight.unique().numel() == 4
    assert model[2].weight.unique().numel() == 8
    assert torch.equal(model[0].weight == 0, hold.pruned["0.weight"])
    again = copy.deepcopy(model)
    hold(again)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    empty = nn.Linear(3, 2)
    empty.weight.data.zero_()
    OnGrid({"weight": 2}, GRIDS["shared"], {"weight": torch.ones(2, 3, dtype=torch.bool)})(empty)
    assert not bool(empty.weight.any())


def test_a_value_is_trained_by_the_sum_of_the_gradients_of_those_that_share_it() -> None:
    model, hold = shared_net()
    x = torch.randn(20, 8)
    plain = copy.deepcopy(model)
    plain(x).square().sum().backward()
    with in_training(model, hold):
        assert torch.equal(model(x), plain(x))
        model(x).square().sum().backward()
        for layer, free in ((0, ~hold.pruned["0.weight"]), (2, torch.ones(3, 12, dtype=torch.bool))):
            shared = model[layer].parametrizations.weight[0]
            assert isinstance(shared, Shared)
            weight, gradient = plain[layer].weight.detach()[free], plain[layer].weight.grad[free]
            for value, found in zip(shared.table.tolist(), shared.table.grad.tolist(), strict=True):
                own = weight == value
                assert own.any()
                assert found * int(own.sum()) == pytest.approx(float(gradient[own].sum()), rel=1e-4, abs=1e-5)


def test_a_step_of_training_keeps_who_shares_and_what_is_zero() -> None:
    model, hold = shared_net()
    before = [model[layer].weight.detach().clone() for layer in (0, 2)]
    names = [name for name, _ in model.named_parameters()]
    with in_training(model, hold):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(20, 8)).square().sum().backward()
            optimizer.step()
            hold(model)  # as a loop of one's own may
    assert [name for name, _ in model.named_parameters()] == names
    for layer, old in zip((0, 2), before, strict=True):
        new = model[layer].weight.detach()
        assert not torch.equal(new, old)
        assert all(len(new[old == value].unique()) == 1 for value in old.unique())
    assert torch.equal(model[0].weight == 0, hold.pruned["0.weight"])
