"""Families of small networks: what `population.yaml` is made of. Any image size from 8 up, any number of channels.

All take `norm`: with batch norm, or without any and with biases. Stages halve the image, `width` multiplies channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BRANCH = 0.2  # of its usual initial weights has a residual branch's last convolution where no norm keeps sums small


def resnet(
    num_classes: int = 10, in_channels: int = 3, depth: int = 20, width: float = 1.0, norm: bool = True
) -> nn.Module:
    """Basic blocks in three stages of 16, 32 and 64 channels; `depth` = 6n + 2 (He et al., CVPR 2016)."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth}: 6n + 2, such as 8, 14, 20")
    stages = scaled((16, 32, 64), width)
    layers: list[nn.Module] = [*convolved(in_channels, stages[0], norm=norm), nn.ReLU()]
    channels = stages[0]
    for stage, outputs in enumerate(stages):
        for block in range(blocks):
            layers.append(Residual(channels, outputs, 2 if stage and not block else 1, norm))
            channels = outputs
    return classifier(layers, channels, num_classes)


def vgg(
    num_classes: int = 10,
    in_channels: int = 3,
    stages: Sequence[int] = (2, 2, 2),
    width: float = 1.0,
    norm: bool = True,
) -> nn.Module:
    """Plain 3×3 convolutions in stages of 32, 64 and 128 channels, pooled in between (Simonyan & Zisserman, 2015)."""
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, (count, outputs) in enumerate(zip(stages, scaled((32, 64, 128), width), strict=True)):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(count):
            layers += [*convolved(channels, outputs, norm=norm), nn.ReLU()]
            channels = outputs
    return classifier(layers, channels, num_classes)


def mobilenet_v1(
    num_classes: int = 10, in_channels: int = 3, blocks: int = 2, width: float = 1.0, norm: bool = True
) -> nn.Module:
    """Depthwise and pointwise convolutions in turns, in stages of 32, 64 and 128 channels (Howard et al., 2017)."""
    stages = scaled((32, 64, 128), width)
    layers: list[nn.Module] = [*convolved(in_channels, stages[0], norm=norm), nn.ReLU()]
    channels = stages[0]
    for stage, outputs in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers += [*convolved(channels, channels, stride=stride, groups=channels, norm=norm), nn.ReLU()]
            layers += [*convolved(channels, outputs, kernel=1, norm=norm), nn.ReLU()]
            channels = outputs
    return classifier(layers, channels, num_classes)


def mobilenet_v2(
    num_classes: int = 10,
    in_channels: int = 3,
    blocks: int = 2,
    width: float = 1.0,
    expansion: int = 4,
    norm: bool = True,
) -> nn.Module:
    """Inverted residuals in stages of 16, 24 and 40 channels (Sandler et al., CVPR 2018)."""
    stages = scaled((16, 24, 40), width)
    layers: list[nn.Module] = [*convolved(in_channels, stages[0], norm=norm), nn.ReLU6()]
    channels = stages[0]
    for stage, outputs in enumerate(stages):
        for block in range(blocks):
            layers.append(Inverted(channels, outputs, 2 if stage and not block else 1, expansion, norm))
            channels = outputs
    layers += [*convolved(channels, 2 * channels, kernel=1, norm=norm), nn.ReLU6()]
    return classifier(layers, 2 * channels, num_classes)


def densenet(
    num_classes: int = 10, in_channels: int = 3, layers: int = 4, growth: int = 8, norm: bool = True
) -> nn.Module:
    """Three dense blocks with bottlenecks, halved in between in channels and size (Huang et al., CVPR 2017)."""
    channels = 2 * growth
    modules: list[nn.Module] = [convolution(in_channels, channels, norm=norm)]
    for stage in range(3):
        if stage:
            modules += [*normed(channels, norm), nn.ReLU(), convolution(channels, channels // 2, kernel=1, norm=norm)]
            modules.append(nn.AvgPool2d(2))
            channels //= 2
        for _ in range(layers):
            modules.append(Dense(channels, growth, norm))
            channels += growth
    return classifier([*modules, *normed(channels, norm), nn.ReLU()], channels, num_classes)


class Residual(nn.Module):
    """Two 3×3 convolutions, and a shortcut round them, with a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool):
        super().__init__()
        self.branch = nn.Sequential(
            *convolved(inputs, outputs, stride=stride, norm=norm),
            nn.ReLU(),
            *convolved(outputs, outputs, norm=norm, gain=BRANCH),
        )
        changes = stride != 1 or inputs != outputs
        shortcut = convolved(inputs, outputs, kernel=1, stride=stride, norm=norm) if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class Inverted(nn.Module):
    """Expanded, filtered channel by channel, projected; added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, norm: bool):
        super().__init__()
        hidden = expansion * inputs
        self.adds = stride == 1 and inputs == outputs
        self.branch = nn.Sequential(
            *convolved(inputs, hidden, kernel=1, norm=norm),
            nn.ReLU6(),
            *convolved(hidden, hidden, stride=stride, groups=hidden, norm=norm),
            nn.ReLU6(),
            *convolved(hidden, outputs, kernel=1, norm=norm, gain=BRANCH if self.adds else 1.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out if self.adds else out


class Dense(nn.Module):
    """A bottleneck of four times the growth; what it makes goes beside what came in."""

    def __init__(self, inputs: int, growth: int, norm: bool):
        super().__init__()
        self.branch = nn.Sequential(
            *normed(inputs, norm),
            nn.ReLU(),
            *convolved(inputs, 4 * growth, kernel=1, norm=norm),
            nn.ReLU(),
            convolution(4 * growth, growth, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


def scaled(channels: Sequence[int], width: float) -> list[int]:
    return [max(4, round(width * count)) for count in channels]


def normed(channels: int, norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if norm else []


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, norm: bool = True
) -> nn.Conv2d:
    """That keeps the size, but for its stride; with a bias where no norm follows."""
    made = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=not norm)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    return made


def convolved(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, norm: bool = True, gain: float = 1.0
) -> list[nn.Module]:
    """A convolution and its norm; without one `gain` scales its weights."""
    made = convolution(inputs, outputs, kernel, stride, groups, norm)
    if not norm:
        with torch.no_grad():
            made.weight.mul_(gain)
    return [made, *normed(outputs, norm)]


def classifier(layers: list[nn.Module], channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
