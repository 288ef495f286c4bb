"""Convolutions with a forward of their own, as ones whose weight and input can be told: cut, repaired and followed.

A weight that is computed of others at every call (weight standardisation: timm's StdConv2d, ScaledStdConv2d) would be
another one as soon as a channel is gone. `open_convolutions` computes it once and for all. An input that is padded at
every call by its own size ("SAME": networks that come from TensorFlow) is padded by a class of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .inference import FAILURES
from .norms import CONVOLUTIONS
from .sampled_conv import SampledConv2d

_FORWARDS = (*(kind.forward for kind in CONVOLUTIONS), nn.Linear.forward)
_CONVOLVE = (*(kind._conv_forward for kind in CONVOLUTIONS), None)
_CALLS = ("conv1d", "conv2d", "conv3d")
_DEFAULTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


class SameConv2d(nn.Conv2d):
    """A convolution that pads its input so that a stride of s leaves ⌈size / s⌉ places, more at the end than before.

    Source: TensorFlow's padding "SAME".
    """

    def prepared(self, x: Tensor) -> Tensor:
        """(N, C, H, W), zeros round it, that the weight is laid on."""
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        down, across = (max(0, (-size % s) + d * (k - 1) + 1 - s) for size, k, s, d in sides)
        return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        return super().forward(self.prepared(x))


PREPARING = (SameConv2d, SampledConv2d)
"""Convolutions of ours that lay their weight on something else than their input: `prepared(x)`."""


def is_plain(module: nn.Module) -> bool:
    """Whether it computes what torch's own convolutions and linear layers do."""
    own = type(module)
    return own.forward in _FORWARDS and getattr(own, "_conv_forward", None) in _CONVOLVE


class _Called(TorchFunctionMode):
    """Sees what convolutions are called with.

    Attributes:
        seen: input, weight, bias, the four settings, and what came out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call."""
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _CALLS:
            given = {**_DEFAULTS, **dict(zip(_DEFAULTS, args, strict=False)), **(kwargs or {})}
            self.seen.append((*(given[name] for name in _DEFAULTS), out))
        return out


def open_convolutions(model: nn.Module) -> nn.Module:
    """Make plain convolutions of those with a forward of their own, in place, where they compute the same.

    What a weight is computed of, beside itself, is a parameter no more.

    Returns:
        The network.
    """
    for name, module in list(model.named_modules()):
        ours = type(module).__module__.startswith(f"{__package__}.")
        if name and isinstance(module, CONVOLUTIONS) and not ours and not is_plain(module):
            plain = _plain(module)
            if plain is not None:
                for path, other in list(model.named_modules(remove_duplicate=False)):
                    if other is module:
                        model.set_submodule(path, plain)
    return model


@torch.no_grad()
def _plain(module: Any) -> nn.Module | None:
    """A convolution that computes the same, where one of `_candidates` does on inputs of many sizes."""
    inputs = list(_inputs(module))
    training = module.training
    module.eval()
    try:
        with _Called() as called:
            wanted = [module(x) for x in inputs]
        _, weight, bias, stride, padding, dilation, groups, out = called.seen[0]
        if len(called.seen) != len(inputs) or out is not wanted[0] or weight.shape != module.weight.shape:
            return None
        settings = (weight.shape[1] * groups, weight.shape[0], weight.shape[2:], stride, padding, dilation, groups)
        kinds = [SameConv2d] if weight.dim() == 4 else []
        for kind in (*(k for k in CONVOLUTIONS if isinstance(module, k)), *kinds):
            found: Any = kind(*settings, bias=bias is not None, device="meta")
            found.weight = module.weight if weight is module.weight else _parameter(weight, module.weight)
            found.bias = module.bias if bias is module.bias or bias is None else _parameter(bias, module.bias)
            same = [found(x) for x in inputs]
            if all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5) for a, b in zip(same, wanted, strict=True)):
                return cast(nn.Module, found.train(training))
    except FAILURES:  # its forward is not for inputs of this form
        pass
    finally:
        module.train(training)
    return None


def _parameter(tensor: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=like.requires_grad)


def _inputs(module: Any) -> Iterator[Tensor]:
    """Made-up inputs of sizes that leave every rest when divided by the stride."""
    generator = torch.Generator().manual_seed(0)
    for more in range(max(2, *module.stride)):
        settings = zip(module.kernel_size, module.stride, module.dilation, strict=True)
        sizes = [dilation * (kernel - 1) + 2 + stride + more for kernel, stride, dilation in settings]
        yield torch.randn(2, module.in_channels, *sizes, generator=generator).to(module.weight)
