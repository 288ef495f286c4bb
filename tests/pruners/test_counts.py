"""FLOPs that no module's weight accounts for: whatever torch's counter sees is paid for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from secateur.networks.attention import open_attention
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.method import cut
from secateur.pruners.costs.counts import count_operations, uncounted_flops


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = zoo.conv_bn(3, 6), nn.ConvTranspose2d(6, 4, 2, 2)
        self.last, self.head = zoo.conv_bn(4, 6), zoo.Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.up(self.stem(x))))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, zoo.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.fc2(F.relu(self.fc1(tokens))).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gru = nn.Conv2d(3, 6, 3, padding=1), nn.GRU(6, 5, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(5, 9), nn.Linear(9, zoo.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.gru(F.relu(self.stem(x)).mean(3).transpose(1, 2))
        return self.fc2(F.relu(self.fc1(found[:, -1])))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 3, 3, 3) / 5)
        self.stem, self.mid, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), zoo.Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mid(F.relu(self.stem(F.conv2d(x, self.kernel, padding=1))))))


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


class Opened(Attending):
    """Its heads can be cut."""

    def __init__(self) -> None:
        super().__init__()
        open_attention(self)


KINDS = pytest.mark.parametrize("kind", [Upsampled, Attending, Opened, Recurrent, Functional])


@pytest.mark.filterwarnings("ignore::UserWarning")
@KINDS
def test_flops_are_torchs_dense_and_pruned(kind: type[nn.Module]) -> None:
    model = made(kind)
    structure = find_layers(model, zoo.RGB)
    assert structure.layers
    assert structure.cost("flops", structure.units) == zoo.flops_counted(model)
    for seed in range(3):
        selection = zoo.draw(structure, seed)
        small = cut(model, structure, selection).model
        assert structure.cost("flops", zoo.kept_of(selection)) == zoo.flops_counted(small)
        assert structure.cost("params", zoo.kept_of(selection)) == sum(p.numel() for p in small.parameters())
    assert structure.cost("flops", np.ones(len(structure.layers))) < zoo.flops_counted(model)


def test_what_is_not_counted_by_module_is_counted_an_image() -> None:
    model = made(Functional)
    for count in (1, 2, 5):
        x = torch.zeros(count, *zoo.RGB)
        assert uncounted_flops(model, x, count_operations(model, x)) == 64 * 3 * 27


def test_transposed_and_recurrent_layers_are_counted_by_module() -> None:
    x = torch.zeros(2, *zoo.RGB)
    found = {op.parameter: op.flops for op in count_operations(made(Upsampled), x)}
    assert found["up.weight"] == 64 * 6 * 4 * 4
    found = {op.parameter: op.flops for op in count_operations(made(Recurrent), x)}
    assert found["gru.weight_ih_l0"] == 8 * 6 * 15


def test_the_products_of_attention_are_counted() -> None:
    model = made(Attending)
    x = torch.zeros(2, *zoo.RGB)
    products = 2 * 16 * 16 * 8  # queries with keys, and weights with values, of 16 tokens
    projections = 16 * 8 * (3 * 8 + 8)
    assert uncounted_flops(model, x, count_operations(model, x)) == products + projections
    opened = open_attention(model)
    assert uncounted_flops(opened, x, count_operations(opened, x)) == products


def test_a_plain_network_has_nothing_of_it_and_settings_stay() -> None:
    model, x = zoo.make("residual"), zoo.images("residual", 2)
    before = (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)
    assert uncounted_flops(model, x, count_operations(model, x)) == 0
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before
