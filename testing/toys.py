"""Tiny networks and images that plug-ins are checked on: milliseconds each, and one for every way to be surprised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import LayersConfig
from ..networks.inference import Batches
from ..pruners.context import Context
from ..pruners.method import METHODS

CLASSES = 5
SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """What comes in, added to what a branch makes of it."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return torch.relu(x + self.branch(x))


def toy_networks(seed: int = 0) -> dict[str, nn.Module]:
    """By name: plain, with biases and no batch norm, residual, depthwise; in eval mode, for images of 3×8×8.

    Their batch norms are far from trivial. The global random state is left as it was.
    """
    with global_random(seed):
        networks = {
            "plain": nn.Sequential(_block(3, 8), _block(8, 12, stride=2), _head(12)),
            "biases": nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(4),
                nn.Flatten(),
                nn.Linear(24, 10),
                nn.ReLU(),
                nn.Linear(10, CLASSES),
            ),
            "residual": nn.Sequential(
                _block(3, 8), Residual(_branch(8, 6)), Residual(_branch(8, 6)), _block(8, 8), _head(8)
            ),
            "depthwise": nn.Sequential(
                _block(3, 8, kernel=1), _block(8, 8, groups=8), _block(8, 10, kernel=1), _head(10)
            ),
        }
        for network in networks.values():
            _scramble(network)
    return {name: network.eval() for name, network in networks.items()}


def toy_images(model: nn.Module, counts: tuple[int, ...] = (24, 16), seed: int = 0) -> Batches:
    """Batches of random images, 3×8×8, with the classes that the network takes them for."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for count in counts:
        images = torch.randn((count, *SHAPE), generator=generator)
        with torch.no_grad():
            labels = model(images).argmax(1)
        batches.append((images, labels.clone()))
    return batches


def toy_context(
    method: str = "channels", network: str = "residual", criterion: str = "", config: LayersConfig | None = None
) -> Context:
    """A toy network, its layers by a method, and its images.

    Raises:
        ValueError: there is no such method; the near miss is named.
    """
    model = toy_networks()[network]
    return Context(model, METHODS[method].find(model, SHAPE, config or LayersConfig()), toy_images(model), criterion)


@contextmanager
def global_random(seed: int) -> Iterator[None]:
    """The generators of torch and numpy that belong to everybody, seeded for the length of a block."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _branch(outer: int, inner: int) -> nn.Sequential:
    return nn.Sequential(_block(outer, inner), nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer))


def _head(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


@torch.no_grad()
def _scramble(network: nn.Module) -> None:
    """Statistics, scales and shifts as a trained network has them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.3)
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
