"""The fast copy of a network computes what the network does, and leaves it alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import zoo
from secateur.networks.fused import Fused
from secateur.pruners.channels.shrink import shrink

CASES = pytest.mark.parametrize(("name", "cut"), zoo.small_cases())


def every_second(name: str, cut: str) -> nn.Module:
    structure = zoo.structure(name, cut)
    pruned = shrink(zoo.make(name), structure, [torch.arange(0, n, 2).numpy() for n in structure.units.tolist()])
    zoo.scramble(pruned)
    return pruned.eval()


@CASES
def test_it_computes_what_the_network_does(name: str, cut: str) -> None:
    model, x = zoo.make(name), zoo.images(name, 5)
    fused = Fused(model, x[:1])
    for network in (model, every_second(name, cut)):
        before = copy.deepcopy(network)
        given = x.clone()
        with torch.inference_mode():
            expected = network(x)
            torch.testing.assert_close(fused(network)(x), expected, rtol=1e-3, atol=1e-4)
            assert torch.equal(network(x), expected)
        assert torch.equal(x, given)
        for key, tensor in before.state_dict().items():
            assert torch.equal(network.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["residual", "downsample", "vgg"])
def test_no_batch_norm_is_left_and_no_activation_makes_a_copy(name: str) -> None:
    fast = Fused(zoo.make(name), zoo.images(name, 1))(zoo.make(name))
    assert isinstance(fast, fx.GraphModule)
    assert not [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]
    relus = [node for node in fast.graph.nodes if node.target is F.relu]
    relus += [m for m in fast.modules() if isinstance(m, nn.ReLU)]
    assert relus
    assert all(r.kwargs["inplace"] if isinstance(r, fx.Node) else r.inplace for r in relus)


class Shared(nn.Module):
    """What an activation or a sum must not overwrite: the image, a tensor that is used again, a smaller operand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.relu(x))
        z = self.act(y) + y
        z = self.gate(z.mean((2, 3), keepdim=True)) + z
        once = self.act(self.second(z))
        return torch.flatten(once + F.relu(once - 0.1), 1)


def test_what_is_used_again_is_not_overwritten() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Shared().eval(), torch.randn(4, 3, 6, 6)
    given = x.clone()
    fast = Fused(model, x[:1])(model)
    assert isinstance(fast, fx.GraphModule)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x))
    assert torch.equal(x, given)
    assert model.act.inplace is False


@pytest.mark.parametrize("name", [name for name, toy in zoo.ZOO.items() if not toy.traceable])
def test_what_cannot_be_traced_runs_as_it_is(name: str) -> None:
    model = zoo.make(name)
    assert Fused(model, zoo.images(name, 1))(model) is model
