"""A layer as two in a row computes what a layer of their product does; of full rank it is the layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import tensorly
import torch
from torch import nn

from secateur.networks.factors import Factorised, factorised, full_rank, matrix, set_weight, unfactorised, unmatrix
from secateur.networks.norms import fold

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), bias=False), (2, 4, 9, 11)),
    "dilated": (lambda: nn.Conv2d(4, 6, (3, 5), dilation=(2, 1), padding="same"), (2, 4, 9, 8)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 7, 6)),
    "wide": (lambda: nn.Conv2d(2, 16, 3, padding=1), (2, 2, 5, 5)),
    "1x1": (lambda: nn.Conv2d(8, 5, 1, stride=2), (2, 8, 6, 6)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "linear": (lambda: nn.Linear(8, 5), (2, 3, 8)),
}
CASES = [(name, kind) for name in LAYERS for kind in ("channel", "spatial") if kind == "channel" or name[0] in "psdrw"]


def layer_of(name: str) -> tuple[Any, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make, shape = LAYERS[name]
        return make(), torch.randn(shape)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_two_layers_compute_what_their_product_does(name: str, kind: Any) -> None:
    layer, x = layer_of(name)
    for rank in (1, 2, full_rank(tuple(layer.weight.shape), kind)):
        two = Factorised.of(layer, rank, kind)
        same = copy.deepcopy(layer)
        same.weight.data = two.weight.detach()
        expected = same(x)
        torch.testing.assert_close(two(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two.whole(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.linalg.matrix_rank(matrix(two.weight.detach(), kind), rtol=1e-5) == rank == two.rank
    torch.testing.assert_close(two(x), layer(x), rtol=1e-4, atol=1e-5)  # of full rank it is the layer


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_product_is_the_nearest_of_its_rank(name: str, kind: Any) -> None:
    layer, _ = layer_of(name)
    weight = layer.weight.detach().double()
    if kind == "spatial":  # tensorly's own order of the dimensions: (outputs, width) against (inputs, height)
        rows = tensorly.unfold(tensorly.tensor(weight.permute(0, 3, 1, 2).flatten(0, 1).numpy()), 0)
    else:
        rows = tensorly.unfold(tensorly.tensor(weight.numpy()), 0)
    left, values, right = tensorly.tenalg.svd_interface(rows, n_eigenvecs=2)
    best = torch.from_numpy((left * values) @ right)
    found = matrix(Factorised.of(layer, 2, kind).weight.detach().double(), kind)
    torch.testing.assert_close(found, best.reshape(found.shape), rtol=1e-4, atol=1e-5)
    assert torch.equal(unmatrix(matrix(weight, kind), tuple(weight.shape), kind), weight)


def test_both_layers_are_of_one_size_and_what_is_frozen_stays_frozen() -> None:
    layer, _ = layer_of("plain")
    layer.weight.requires_grad_(False)
    two = Factorised.of(layer, 3, "spatial")
    first, second = two.factors
    torch.testing.assert_close(first.weight.norm(), second.weight.norm())
    assert [(name, p.requires_grad) for name, p in two.named_parameters()] == [
        ("0.weight", False),
        ("1.weight", False),
        ("1.bias", True),
    ]
    assert two.bias is layer.bias
    assert not two.whole.weight.requires_grad
    again = pickle.loads(pickle.dumps(two))  # workers are sent them
    assert (again.kind, again.rank) == ("spatial", 3)


def test_a_weight_is_set_and_weights_that_do_not_matter_make_zeros() -> None:
    layer, _ = layer_of("plain")
    two = Factorised.of(layer, 2, "channel")
    other = torch.einsum("or,rchw->ochw", torch.randn(6, 2), torch.randn(2, 4, 3, 3))
    set_weight(two, other)
    torch.testing.assert_close(two.weight, other, rtol=1e-4, atol=1e-5)
    layer.weight.data.fill_(float("nan"))
    assert torch.equal(Factorised.of(layer, 2, "channel").weight, torch.zeros_like(other))


def test_a_batch_norm_is_folded_into_the_second() -> None:
    layer, x = layer_of("strided")
    two, norm = Factorised.of(layer, 3, "spatial").eval(), nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.uniform_(-1, 1)
    folded = fold(two, norm)
    torch.testing.assert_close(folded(x), norm(two(x)), rtol=1e-4, atol=1e-5)
    assert two.bias is None


def test_a_network_goes_back_to_one_layer_where_the_dense_one_has_one() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    base = factorised(copy.deepcopy(dense), {"1": (2, "spatial")})
    small = factorised(copy.deepcopy(base), {"0": (2, "channel"), "1": (1, "spatial")})
    back = unfactorised(small, base)
    assert [type(module) for module in back] == [nn.Conv2d, Factorised]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(back(x), small(x), rtol=1e-4, atol=1e-5)
    assert unfactorised(base, base) is base
