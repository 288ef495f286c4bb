"""The CIFAR ResNets of He et al. (2016), section 4.2, and a small one for the 8×8 digits.

Parameter names are those of github.com/akamaster/pytorch_resnet_cifar10, so that its published weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .channel_pad import ChannelPad
from .registry import register_network

DEPTHS = (20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut round them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.shortcut = ChannelPad(in_channels, channels, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling and a linear classifier."""

    def __init__(
        self, blocks: int, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        """An untrained network, in training mode as any fresh module.

        Args:
            blocks: basic blocks a stage.
            num_classes: outputs.
            in_channels: channels of the images.
            widths: channels of the three stages; the second and the third halve the image.

        Raises:
            ValueError: a count below 1, or not three widths.
        """
        super().__init__()
        if min(blocks, num_classes, in_channels) < 1:
            raise ValueError(f"blocks={blocks}, num_classes={num_classes}, in_channels={in_channels}: each at least 1")
        if len(widths) != 3:
            raise ValueError(f"widths={list(widths)}: one for each of the three stages")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The ResNet of `depth` = 6n + 2 layers for 32×32 images.

    Raises:
        ValueError: no such depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth}: a CIFAR ResNet has 6n+2 layers, such as {', '.join(map(str, DEPTHS))}")
    return CifarResNet(blocks, num_classes, in_channels)


for _depth in DEPTHS:
    register_network(f"cifar_resnet{_depth}", (3, 32, 32))(partial(cifar_resnet, _depth))


@register_network("digits_resnet", (1, 8, 8))
def digits_resnet(num_classes: int = 10, in_channels: int = 1) -> CifarResNet:
    """Two blocks a stage, for 8×8 images of one channel: trained in seconds, six inner layers to prune."""
    return CifarResNet(2, num_classes, in_channels)
