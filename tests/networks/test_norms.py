"""Batch norms folded into what is in front of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.networks.norms import fold_batchnorm, fold_statistics, following_norms


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@pytest.mark.parametrize("name", sorted({name for name, _ in zoo.cases()}))
def test_a_folded_network_computes_the_same_with_fewer_norms(name: str) -> None:
    model, x = zoo.make(name), zoo.images(name, 4)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = fold_batchnorm(model, x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)
    assert norms(model) - norms(folded) == len(following_norms(model, x))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4, eps=0.1), nn.BatchNorm3d(4).double(), nn.BatchNorm2d(4, affine=False)]
)
def test_statistics_go_into_weights_where_there_are_any(norm: nn.Module) -> None:
    torch.manual_seed(0)
    for tensor in norm.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 3 + 0.1)
    model = norm.eval()
    x = torch.randn(2, 4, *[3] * {"1d": 0, "2d": 2, "3d": 3}[type(norm).__name__[-2:]], dtype=norm.running_mean.dtype)
    with torch.no_grad():
        before = model(x)
        fold_statistics(model)
        torch.testing.assert_close(model(x), before)
    folded = bool((model.running_mean == 0).all() and (model.running_var == 1).all())
    assert folded == norm.affine


def test_what_is_to_be_kept_stays() -> None:
    model, x = zoo.make("residual"), zoo.images("residual", 4)
    folded = fold_batchnorm(model, x, keep={"bn1", "layer1.0.conv2"})
    assert isinstance(folded.get_submodule("bn1"), nn.BatchNorm2d)
    assert isinstance(folded.get_submodule("layer1.0.bn2"), nn.BatchNorm2d)
    assert norms(folded) == 2


class TwoNames(nn.Module):
    """Its convolution is called by a name that no list of modules gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.again(x))
        return out


def test_a_copy_that_computes_something_else_is_not_taken() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoNames().eval()
        zoo.scramble(model)
    assert fold_batchnorm(model, zoo.images("vgg", 4)) is model
