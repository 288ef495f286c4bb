"""Tiny networks, one for every way in which channels couple; their batch norms are far from trivial.

Every one says which layers it should have, so that a coupling that is lost is noticed.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.ops.misc import FrozenBatchNorm2d, SqueezeExcitation

from secateur.configs import LatencyConfig
from secateur.envs import Evaluation
from secateur.networks import CifarResNet, digits_resnet
from secateur.networks.attention import open_attention
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.method import cut as cut_channels
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.context import consumers
from secateur.pruners.costs.latency_profile import take_table
from secateur.pruners.method import Compressed
from secateur.pruners.repair.gram import DenseMoments, collect_moments
from secateur.pruners.repair.sequential import SequentialRepair
from secateur.pruners.structure import Structure

Batches = list[tuple[Tensor, Tensor]]
CLASSES = 5
RGB = (3, 8, 8)


@dataclass(frozen=True)
class Toy:
    """One network and what is known of it.

    Attributes:
        build: makes it, with torch's random weights.
        inner: layer → units, with `cut="inner"`.
        trunk: the layers that `cut="all"` has on top.
        sampled: the layers that `cut="sampled"` has on top.
        whole: left whole in any case, with a part of the reason.
        shape: of one image.
        traceable: whether torch.fx can follow its forward.
    """

    build: Callable[[], nn.Module]
    inner: Mapping[str, int]
    trunk: Mapping[str, int] = field(default_factory=dict)
    sampled: Mapping[str, int] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = RGB
    traceable: bool = True

    def layers(self, cut: str) -> dict[str, int]:
        return {**self.inner, **{"inner": {}, "sampled": self.sampled, "all": self.trunk}[cut]}


ZOO: dict[str, Toy] = {}


def toy(
    inner: Mapping[str, int],
    trunk: Mapping[str, int] | None = None,
    whole: Mapping[str, str] | None = None,
    shape: tuple[int, ...] = RGB,
    traceable: bool = True,
    sampled: Mapping[str, int] | None = None,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ZOO[build.__name__.lower()] = Toy(build, inner, trunk or {}, sampled or {}, whole or {}, shape, traceable)
        return build

    return register


def flops_counted(model: nn.Module, shape: tuple[int, ...] = RGB) -> int:
    """Multiply-accumulates of one image by torch's counter, every kernel one that it knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of settings that this build of torch lacks
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
        ):
            model(torch.zeros(1, *shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    twice: int = counter.get_total_flops()
    assert twice % 2 == 0
    return twice // 2


def cases() -> list[tuple[str, str]]:
    """Every network with cut="inner"; those that have a trunk with cut="all", too, some with cut="sampled"."""
    there = {name: {"inner": True, "all": bool(toy.trunk), "sampled": bool(toy.sampled)} for name, toy in ZOO.items()}
    return [(name, cut) for name, cuts in there.items() for cut, there_is in cuts.items() if there_is]


def small_cases() -> list[tuple[str, str]]:
    """The same without the two larger networks, for what takes longer."""
    return [case for case in cases() if case[0] not in ("resnet20", "digits")]


FEW = ("vgg", "residual", "bottleneck", "densenet", "unet", "grouped", "inverted", "shared", "squeeze", "conv1d")
FEW += ("conv3d", "c2f", "norms", "transformer", "recurrent")


def few_cases() -> list[tuple[str, str]]:
    """A network of every kind, for what does not depend on how exactly channels are coupled."""
    return [case for case in cases() if case[0] in FEW]


def make(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, with statistics and affine parameters that are nowhere 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ZOO[name].build()
        scramble(model)
    return model.eval()


def scramble(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
            if module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.5)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.normal_(module.bias, 0.0, 0.3)


@functools.cache
def structure(name: str, cut: str = "inner") -> ChannelStructure:
    """Its layers; the weights' seed plays no part in them."""
    return find_layers(make(name), ZOO[name].shape, cut=cut)


Price = Callable[[nn.Module, Tensor, Tensor], float]


def timer(price: Price) -> Callable[[nn.Module, Tensor], list[float]]:
    """Stands for the clock: every segment takes what its module is priced at, by its input and output for an image."""

    def seconds(model: nn.Module, batch: Tensor) -> list[float]:
        found: list[float] = []
        leaves = [module for module in model.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(lambda m, x, y: found.append(price(m, x[0], y))) for leaf in leaves]
        model(batch[:1])
        for hook in hooks:
            hook.remove()
        return found

    return seconds


def multiplications(module: nn.Module, _input: Tensor, output: Tensor) -> float:
    """A nanosecond each."""
    if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        return 0.0
    channels = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
    return 1e-9 * module.weight.numel() * (output.numel() // channels)


def blocks(module: nn.Module, given: Tensor, output: Tensor) -> float:
    """A microsecond, and one for every pair of blocks, of three inputs or outputs; elsewhere one an element."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() > 1:
        return 1e-6 * (1 + -(-weight.shape[0] // 3) * -(-weight.shape[1] // 3))
    return 1e-6 * (given.numel() + output.numel())


TIMED = [("residual", "all"), ("vgg", "inner"), ("grouped", "inner"), ("densenet", "inner")]


@functools.cache
def timed(name: str, cut: str = "inner") -> ChannelStructure:
    """Its layers with a table of `blocks`."""
    layers = structure(name, cut)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", folder)
        table = take_table(make(name), layers, LatencyConfig(batch=1, repeats=1), timer=timer(blocks))
    return replace(layers, costs={**layers.costs, "latency": table})


def priced(kind: str, name: str, cut: str) -> ChannelStructure:
    """Its layers, with a table where latency is asked for; for that, networks that are not in `TIMED` stand back."""
    if kind != "latency":
        return structure(name, cut)
    return timed(*TIMED[cases().index((name, cut)) % len(TIMED)])


def draw(layers: Structure, seed: int) -> Selection:
    """Some units of every layer: from one to all of them."""
    rng = np.random.default_rng(seed)
    return [
        np.sort(rng.choice(layer.units, rng.integers(1, layer.units + 1), replace=False)) for layer in layers.layers
    ]


def whole(layers: Structure) -> Selection:
    """All units of every layer."""
    return [np.arange(layer.units) for layer in layers.layers]


def kept_of(selection: Selection) -> list[int]:
    """How many units stay."""
    return [len(keep) for keep in selection]


def compress(name: str, cut: str, selection: Selection, seed: int = 0) -> Compressed:
    """The network of the zoo that keeps these units, nothing fitted."""
    return cut_channels(make(name, seed), structure(name, cut), selection)


def moments(model: nn.Module, layers: Structure, images: Batches) -> DenseMoments:
    """Of all consumers' inputs."""
    return collect_moments(model, consumers(layers), images)


def assert_same_network(first: nn.Module, second: nn.Module, x: Tensor) -> None:
    """Every tensor bit by bit; the outputs up to what another memory layout does to a sum."""
    tensors, others = first.state_dict(), second.state_dict()
    assert tensors.keys() == others.keys()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, others[key]), key
    with torch.no_grad():
        torch.testing.assert_close(first(x), second(x), rtol=1e-5, atol=1e-6)


class Target:
    """An evaluator whose optimum is known: so many units of every layer, and the further off the worse.

    Attributes:
        kept: the optimum.
        calls: how often it was asked.
    """

    def __init__(self, layers: Structure, kept: Sequence[int]):
        self.structure = layers
        self.kept = np.asarray(kept)
        self.calls = 0

    @property
    def dense(self) -> Evaluation:
        return Evaluation(100.0, 0.0, 1.0, 1.0)  # nothing is better than the optimum

    def evaluate(self, kept: NDArray[np.int64]) -> Evaluation:
        self.calls += 1
        off = float(np.square((kept - self.kept) / self.structure.units).mean())
        return Evaluation(
            accuracy=100.0 * (1.0 - off),
            reconstruction_loss=off,
            flops=self.structure.fraction("flops", kept),
            params=self.structure.fraction("params", kept),
        )

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        return map(self.evaluate, plans)


def images(name: str, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *ZOO[name].shape, generator=torch.Generator().manual_seed(seed))


def batches(name: str, counts: tuple[int, ...] = (24, 24, 16), seed: int = 0) -> Batches:
    """Calibration images in batches of unlike size, and labels nobody needs."""
    return [(images(name, count, seed + i), torch.arange(count) % CLASSES) for i, count in enumerate(counts)]


class Head(nn.Sequential):
    """Global average pooling and a linear classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@toy({"0.0": 8, "2.0": 6, "5": 10}, whole={"7": "output"})
def vgg() -> nn.Module:
    """Flattened: every channel is four inputs of the linear layer."""
    return nn.Sequential(
        conv_bn(3, 8),
        nn.MaxPool2d(2),
        conv_bn(8, 6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 4, 10),
        nn.ReLU(),
        nn.Linear(10, CLASSES),
    )


@toy({"0": 7, "2": 6, "4": 9}, whole={"6.2": "output"})
def plain_bias() -> nn.Module:
    """With biases, without batch norm; padding, stride and dilation of every kind."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(7, 6, (3, 2), stride=(2, 1), padding=(0, 1)),
        nn.ReLU(),
        nn.Conv2d(6, 9, 3, padding="same", dilation=2),
        nn.LeakyReLU(0.1),
        Head(9),
    )


@toy({"0": 6, "3": 8}, whole={"6.2": "output"})
def bias_and_norm() -> nn.Module:
    """A bias in front of a batch norm, and a batch norm without affine parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        Head(8),
    )


@toy(
    {"layer1.0.conv1": 4, "layer2.0.conv1": 6, "layer3.0.conv1": 8},
    {"conv1": 4, "layer2.0.conv2": 6, "layer3.0.conv2": 8},
    {"linear": "output"},
    sampled={"layer1.0.conv1.input": 4, "layer2.0.conv1.input": 4, "layer3.0.conv1.input": 6},
)
def residual() -> nn.Module:
    """Option-A shortcuts: a ChannelPad where shapes change."""
    return CifarResNet(1, CLASSES, widths=(4, 6, 8))


@toy(
    {f"layer{stage}.{block}.conv1": 8 * 2**stage for stage in (1, 2, 3) for block in range(3)},
    {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64},
    {"linear": "output"},
    shape=(3, 16, 16),
)
def resnet20() -> nn.Module:
    """The CIFAR ResNet-20 itself, on smaller images."""
    return CifarResNet(3, CLASSES)


@toy(
    {f"layer{stage}.{block}.conv1": 8 * 2**stage for stage in (1, 2, 3) for block in range(2)},
    {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64},
    {"linear": "output"},
    shape=(1, 8, 8),
)
def digits() -> nn.Module:
    return digits_resnet(CLASSES)


class Downsampled(nn.Module):
    """torchvision's own blocks: in-place, the shortcut computed after the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.block1 = BasicBlock(6, 6)
        shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.block2 = BasicBlock(6, 8, stride=2, downsample=shortcut)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(self.stem(x))))


@toy(
    {"block1.conv1": 6, "block2.conv1": 8},
    {"stem.0": 6, "block2.conv2": 8},
    {"head.2": "output"},
    sampled={"block1.conv1.input": 6, "block2.conv1.input": 6},
)
def downsample() -> nn.Module:
    return Downsampled()


@toy({"0.0": 8, "1.conv1": 4, "1.conv2": 4}, {"1.conv3": 16}, {"2.2": "output"})
def bottleneck() -> nn.Module:
    """ResNeXt's: a grouped convolution inside, a unit of which is one channel in both groups."""
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(conv_bn(3, 8), Bottleneck(8, 4, downsample=shortcut, groups=2, base_width=64), Head(16))


class Transposed(nn.Module):
    """A transposed convolution, whose weight has its inputs in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.down = conv_bn(6, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.last = conv_bn(6, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.up(self.down(self.stem(x)))))


@toy({"stem.0": 6, "down.0": 8, "up": 6, "last.0": 6}, whole={"head.2": "output"})
def transposed() -> nn.Module:
    return Transposed()


class Strict(nn.Module):
    """Insists on the number of channels in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.mid = conv_bn(6, 8)
        self.last = conv_bn(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.stem(x))
        if x.shape[1] != 8:
            raise AssertionError
        return self.head(self.last(x))


@toy({"stem.0": 6, "last.0": 6}, whole={"head.2": "output", "mid.0": "coupling"})
def strict() -> nn.Module:
    return Strict()


class PreActivation(nn.Module):
    """Batch norm in front; what the stem computes reaches a batch norm *and* the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.stem = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.first(x)))
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return self.head(F.relu(self.bn3(out + x)))


@toy({"first": 6, "conv1": 6}, {"stem": 8}, {"head.2": "output"})
def preactivation() -> nn.Module:
    return PreActivation()


class OwnShortcut(nn.Module):
    """A convolution whose output is added to its own batch norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.first(x)))
        return self.head(torch.add(self.bn(x), x))


@toy({"first": 6}, {"conv": 8}, {"head.2": "output"})
def own_shortcut() -> nn.Module:
    return OwnShortcut()


@toy({"0.0": 8, "2.0": 6}, whole={"3.2": "output"})
def depthwise() -> nn.Module:
    """MobileNetV1's pairs."""
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 8, groups=8), conv_bn(8, 6, kernel=1), Head(6))


@toy({"0.0": 6, "1.conv.0.0": 18, "2.conv.0.0": 16}, {"1.conv.2": 8}, {"3.2": "output"})
def inverted() -> nn.Module:
    """MobileNetV2's blocks, the second one residual."""
    return nn.Sequential(conv_bn(3, 6), InvertedResidual(6, 8, 2, 3), InvertedResidual(8, 8, 1, 2), Head(8))


@toy({"1.0": 6}, whole={"2.2": "output"})
def depthwise_first() -> nn.Module:
    """A depthwise convolution of the image itself, whose channels nobody can cut."""
    return nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), conv_bn(3, 6), Head(6))


@toy({"0.0": 4, "1.0": 4, "2.0": 3, "3.0": 6}, whole={"4.2": "output"})
def grouped() -> nn.Module:
    """Groups of two, then of four: units take one channel of each."""
    return nn.Sequential(
        conv_bn(3, 8), conv_bn(8, 16, groups=2), conv_bn(16, 12, 1, groups=4), conv_bn(12, 6, 1), Head(6)
    )


class Dense(nn.Module):
    """DenseNet's: everything before is concatenated, with one batch norm over it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (6, 10, 14)])
        self.grow = nn.ModuleList([nn.Conv2d(n, 4, 3, padding=1, bias=False) for n in (6, 10)])
        self.head = Head(14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, grow in zip(self.norms, self.grow, strict=False):
            x = torch.cat([x, grow(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norms[2](x)))


@toy({"stem": 6, "grow.0": 4, "grow.1": 4}, whole={"head.2": "output"})
def densenet() -> nn.Module:
    return Dense()


class UNet(nn.Module):
    """Down, up, and concatenated across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv_bn(3, 6)
        self.deep = conv_bn(6, 8)
        self.up = conv_bn(14, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        deep = self.deep(F.max_pool2d(x, 2))
        return self.head(self.up(torch.cat([F.interpolate(deep, scale_factor=2.0), x], dim=1)))


@toy({"down.0": 6, "deep.0": 8, "up.0": 6}, whole={"head.2": "output"})
def unet() -> nn.Module:
    return UNet()


class Shared(nn.Module):
    """One convolution applied twice, so that its inputs and outputs are one dimension."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.again = nn.Conv2d(6, 6, 3, padding=1, bias=norms == 0)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6) for _ in range(norms)])
        self.last = conv_bn(6, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in range(2):
            x = self.again(x)
            x = F.relu(self.norms[step](x) if len(self.norms) else x)
        return self.head(self.last(x))


@toy({"stem.0": 6, "last.0": 8}, whole={"head.2": "output"})
def shared() -> nn.Module:
    return Shared(0)


@toy({"stem.0": 6, "last.0": 8}, whole={"head.2": "output"})
def shared_two_norms() -> nn.Module:
    return Shared(2)


@toy({"6": 7}, whole={"7.2": "output", "0": "share"})
def tied() -> nn.Module:
    """Two convolutions that share one weight, each with a bias of its own."""
    convolutions = [nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)]
    convolutions[1].weight = convolutions[0].weight
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU()),
        nn.Conv2d(6, 7, 3),
        Head(7),
    )


@toy({"0": 6, "2": 8, "4": 4}, whole={"6.2": "output"})
def prelu() -> nn.Module:
    """Slopes of one a channel, and of one for all."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 8, 1), nn.PReLU(), nn.Conv2d(8, 4, 3), nn.PReLU(4), Head(4)
    )


@toy({"0": 6, "3": 8, "6": 5}, whole={"10": "output"}, shape=(4, 20))
def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 6, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Conv1d(6, 8, 3, padding=1, padding_mode="replicate"),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 5, 3, dilation=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(10, CLASSES),
    )


@toy({"0": 6, "2": 8, "4": 7}, whole={"7": "output"}, shape=(4, 20))
def circular() -> nn.Module:
    """Padded in a circle."""
    return nn.Sequential(
        *(nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 8, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        *(nn.Conv1d(8, 7, 3), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(14, CLASSES)),
    )


@toy({"0": 6, "2": 4}, whole={"6": "output"}, shape=(2, 4, 6, 6))
def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(6, 4, 3),
        nn.BatchNorm3d(4),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


class Shuffle(nn.Module):
    """ShuffleNet's: half of the channels go on as they are, and the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branch = nn.Sequential(conv_bn(4, 6, 1), conv_bn(6, 4))
        self.last = conv_bn(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        x = x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 8, 8, 8)
        return self.head(self.last(x))


@toy(
    {"branch.0.0": 6, "last.0": 6},
    whole={"head.2": "output", "stem.0": "coupling"},  # with branch.1.0, which it is interleaved with
)
def shuffle() -> nn.Module:
    return Shuffle()


class ByValue(nn.Module):
    """Takes one way or another by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.bright = conv_bn(6, 6)
        self.last = conv_bn(6, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bright(self.stem(x))
        if x.mean() > -100.0:
            x = self.last(x)
        return self.head(x)


@toy({"stem.0": 6, "bright.0": 6, "last.0": 8}, whole={"head.2": "output"}, traceable=False)
def by_value() -> nn.Module:
    return ByValue()


@toy({"0.0": 8, "1.fc1": 4, "2.0": 6}, whole={"3.2": "output"})
def squeeze() -> nn.Module:
    """Squeeze-and-excitation: the gates are coupled to what they scale."""
    return nn.Sequential(conv_bn(3, 8), SqueezeExcitation(8, 4), conv_bn(8, 6), Head(6))


class Scaled(nn.Module):
    """A parameter of its own a channel, in a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.conv2(F.relu(self.conv1(x)) * self.gain))


@toy({"conv1": 8}, {"stem.0": 6}, {"head.2": "output"})
def scaled() -> nn.Module:
    return Scaled()


class Embedded(nn.Module):
    """A position embedding is added: a sum of one producer's, and so no trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.places = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.last = nn.Conv2d(6, 8, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.stem(x) + self.places))))


@toy({"stem": 6, "last": 8}, whole={"head.2": "output"})
def embedded() -> nn.Module:
    return Embedded()


class Tokens(nn.Module):
    """Linear layers over the last of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.fc1 = nn.Linear(6, 9)
        self.fc2 = nn.Linear(9, 7)
        self.fc3 = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.fc3(x).mean(1)


@toy({"patch": 6, "fc1": 9, "fc2": 7}, whole={"fc3": "output"})
def tokens() -> nn.Module:
    return Tokens()


class ChannelMean(nn.Module):
    """The mean over channels is another one once a channel is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.mid = conv_bn(6, 8)
        self.last = conv_bn(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.stem(x))
        return self.head(self.last(x - x.mean(1, keepdim=True)))


@toy({"stem.0": 6, "last.0": 6}, whole={"head.2": "output", "mid.0": "depend on one another"})
def channel_mean() -> nn.Module:
    return ChannelMean()


@toy({"0.0": 6, "1": 4, "4.0": 6}, whole={"5.2": "output"})
def normalised() -> nn.Module:
    """A group norm's channels go group by group."""
    return nn.Sequential(conv_bn(3, 6), nn.Conv2d(6, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), conv_bn(8, 6), Head(6))


class Shuffled(nn.Module):
    """Channels laid out in two rows, and taken by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.last = conv_bn(8, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x))


@toy({"stem.0": 4, "last.0": 6}, whole={"head.2": "output"})
def shuffled() -> nn.Module:
    return Shuffled()


class C2f(nn.Module):
    """YOLO's: two halves of a convolution, one of them goes on, and all that there was is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.cv1 = conv_bn(6, 8, 1)
        self.m = nn.ModuleList([nn.Sequential(conv_bn(4, 5), conv_bn(5, 4)) for _ in range(2)])
        self.cv2 = conv_bn(16, 7, 1)
        self.head = Head(7)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(self.stem(x)).chunk(2, 1))
        parts.extend(module(parts[-1]) for module in self.m)
        return self.head(self.cv2(torch.cat(parts, 1)))


@toy(
    {"stem.0": 6, "cv1.0": 4, "m.0.0.0": 5, "m.0.1.0": 4, "m.1.0.0": 5, "m.1.1.0": 4, "cv2.0": 7},
    whole={"head.2": "output"},
)
def c2f() -> nn.Module:
    return C2f()


class Split(nn.Module):
    """Res2Net's: as many channels a part as the module has noted down."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.stem = conv_bn(3, 12)
        self.parts = nn.ModuleList([conv_bn(4, 4) for _ in range(2)])
        self.last = conv_bn(12, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(self.stem(x), self.width, 1)
        return self.head(self.last(torch.cat([first, *map(lambda f, y: f(y), self.parts, others)], 1)))


@toy({"stem.0": 4, "parts.0.0": 4, "parts.1.0": 4, "last.0": 6}, whole={"head.2": "output"})
def split() -> nn.Module:
    return Split()


@toy({"0": 6, "3": 6, "6": 5}, whole={"11": "output"})
def multiplied() -> nn.Module:
    """A depthwise convolution that makes two channels of each, plain and transposed."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU()),
        *(nn.Conv2d(12, 6, 1), nn.ConvTranspose2d(6, 12, 2, groups=6), nn.ReLU()),
        *(nn.Conv2d(12, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)),
    )


@toy({"0": 6, "3": 2, "5": 3, "7": 5}, whole={"11": "output"})
def norms() -> nn.Module:
    """Frozen statistics, groups of two channels, a transposed convolution in groups, response over all channels."""
    frozen = FrozenBatchNorm2d(6)
    frozen.running_mean.normal_()
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), frozen, nn.ReLU()),
        *(nn.Conv2d(6, 8, 3), nn.GroupNorm(4, 8)),
        *(nn.ConvTranspose2d(8, 6, 2, groups=2), nn.ReLU()),
        *(nn.Conv2d(6, 5, 1), GlobalResponseNorm(5)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES)),
    )


@toy({"0": 4, "6": 6}, whole={"10": "output"})
def whole_groups() -> nn.Module:
    """Two convolutions in groups, the second transposed, behind a norm of the same groups."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU()),
        *(nn.ConvTranspose2d(12, 8, 2, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
    )


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's: a channel's size, as a part of the mean over all."""

    channel_dim = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return x + weight * x * size / (size.mean(1, keepdim=True) + 1e-6) + bias


class Attention(nn.Module):
    """ViT's, with one layer for queries, keys and values, or three."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width) if fused else nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        if isinstance(self.qkv, nn.Linear):
            q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (layer(x).view(n, tokens, self.num_heads, -1).transpose(1, 2) for layer in self.qkv)
            mixed = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, -1))


class Scales(nn.Module):
    """EfficientViT's: linear attention of what a convolution makes, and of that seen by one in groups of a head's."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.stem = conv_bn(3, 8)
        self.qkv = nn.Conv2d(8, 3 * heads * width, 1, bias=False)
        self.far = nn.Conv2d(3 * heads * width, 3 * heads * width, 3, padding=1, groups=3 * heads * width, bias=False)
        self.mix = nn.Conv2d(3 * heads * width, 3 * heads * width, 1, groups=3 * heads, bias=False)
        self.proj = conv_bn(2 * heads * width, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        near = self.qkv(x)
        parts = torch.cat([near, self.mix(self.far(near))], 1).flatten(2).unflatten(1, (-1, 3 * self.width))
        q, k, v = parts.transpose(-1, -2).chunk(3, dim=-1)
        mixed = q.relu() @ (k.relu().transpose(-1, -2) @ F.pad(v, (0, 1), value=1.0))
        mixed = mixed[..., :-1] / (mixed[..., -1:] + 1e-5)
        return self.head(self.proj(mixed.transpose(-1, -2).reshape(x.shape[0], -1, *x.shape[2:])))


@toy({"stem.0": 8, "qkv": 3, "proj.0": 8}, whole={"head.2": "output"})
def scales() -> nn.Module:
    return Scales(heads=3, width=2)


class Transformer(nn.Module):
    """Patches, a class token, positions, and a block of attention and an MLP, all on one trunk with layer norms."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(12) for _ in range(3))
        self.attention = Attention(12, 4, fused)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x)[:, 0])


@toy({"attention.qkv": 4, "mlp.0": 20}, {"patch": 12}, {"head": "output"})
def transformer() -> nn.Module:
    return Transformer(fused=True)


@toy({"attention.qkv.0": 4, "mlp.0": 20}, {"patch": 12}, {"head": "output"})
def transformer_in_parts() -> nn.Module:
    return Transformer(fused=False)


class Encoder(nn.Module):
    """torch's own encoder layers, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 16), 1, enable_nested_tensor=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))


@toy(
    {"layers.layers.0.self_attn": 3, "layers.layers.0.linear1": 16},
    {"patch": 12},
    {"head": "output"},
)
def encoder() -> nn.Module:
    return open_attention(Encoder())


class Windows(nn.Module):
    """Swin's blocks, as torchvision has them: plain windows, then shifted ones, of both versions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, 2)
        self.blocks = nn.ModuleList([ShiftedWindowAttention(12, [3, 3], [i, i], 3) for i in range(2)])
        self.blocks.append(ShiftedWindowAttentionV2(12, [2, 2], [1, 1], 4))
        self.blocks[2].cpb_mlp[0], self.blocks[2].cpb_mlp[2] = nn.Linear(2, 7), nn.Linear(7, 4, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(12) for _ in self.blocks])
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x))
        return self.head(x.mean((1, 2)))


@toy(
    {"blocks.0.qkv": 3, "blocks.1.qkv": 3, "blocks.2.qkv": 4},
    {"patch": 12},
    {"head": "output", "blocks.2.cpb_mlp.0": "constant"},
)
def windows() -> nn.Module:
    return open_attention(Windows())


class Auxiliary(nn.Module):
    """GoogLeNet's: in training a second head looks at what a layer in the middle computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 6), conv_bn(6, 8)
        self.aux = nn.Sequential(conv_bn(6, 4, 1), Head(4))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.stem(x)
        out = self.head(self.last(x))
        return {"out": out, "aux": self.aux(x)} if self.training else out


@toy({"stem.0": 6, "last.0": 8}, whole={"head.2": "output"})
def auxiliary() -> nn.Module:
    return Auxiliary()


class Recurrent(nn.Module):
    """A convolution whose channels a recurrent layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 3)
        self.conv2 = nn.Conv1d(6, 8, 3)
        self.gru = nn.GRU(8, 7, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.gru(F.relu(self.conv2(F.relu(self.conv1(x)))).transpose(1, 2))
        return self.head(found[:, -1])


@toy({"conv1": 6, "conv2": 8}, whole={"head": "output"}, shape=(3, 12))
def recurrent() -> nn.Module:
    return Recurrent()


class Lost(nn.Module):
    """One of two branches goes through what nobody can follow: it alone is left whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.plain = conv_bn(6, 5)
        self.odd = conv_bn(6, 4)
        self.last = conv_bn(9, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        odd = torch.fft.irfft2(torch.fft.rfft2(self.odd(x)), s=x.shape[-2:])
        return self.head(self.last(torch.cat([self.plain(x), odd], 1)))


@toy({"stem.0": 6, "plain.0": 5, "last.0": 6}, whole={"head.2": "output", "odd.0": "fft_rfft2"})
def lost() -> nn.Module:
    return Lost()


def repair_sequentially(compressed: Compressed, dense: nn.Module, batches: Batches, *, refit: bool = False) -> None:
    """`SequentialRepair` of one network alone, in place."""
    SequentialRepair(dense, batches, held=0)(compressed, refit=refit)
