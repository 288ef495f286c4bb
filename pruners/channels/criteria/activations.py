"""Criteria that look at what units do on the calibration images: at the inputs of a layer's consumers.

That is behind batch norm and activation, and it is what a consumer loses when a unit goes. A unit of several channels
(grouped convolutions), or of several positions behind a flattening, counts as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....networks.norms import CONVOLUTIONS, channel_dim
from ....training.inputs import call, count, mapped
from ...context import Context
from ..slices import ChannelLayer, channel_layers
from .registry import Scores, register_score
from .regressions import consumer_positions


@register_score("apoz")
def apoz(context: Context, layer: ChannelLayer) -> Scores:
    """Less the average percentage of zeros (Hu et al., 2016, eq. 1): units that are seldom zero stay.

    Zeros of a unit at its consumers' inputs, over images and positions; the mean over consumers.
    """
    return -_mean(context, layer, 0)


@register_score("mean_activation")
def mean_activation(context: Context, layer: ChannelLayer) -> Scores:
    """Mean |activation| at the consumers' inputs over images and positions (Molchanov et al., ICLR 2017, sec. 2.2)."""
    return _mean(context, layer, 1)


@register_score("taylor")
def taylor(context: Context, layer: ChannelLayer) -> Scores:
    """First-order change of the loss when a unit is zeroed (Molchanov et al., ICLR 2017, eq. 8).

    Σ activation · ∂loss/∂activation over the positions of a unit at all its consumers' inputs, as of one gate; its
    absolute value, averaged over images. The loss is the objective's with the calibration targets; one backward pass of
    all images serves every layer.
    """
    return np.asarray(context.store.get("taylor", lambda: _gates(context))[layer.name].numpy())


def consumer_channels(context: Context, layer: ChannelLayer) -> dict[str, NDArray[np.int64]]:
    """Consumer → (units, k) where each unit lies among *all* its input channels, those of every group."""
    found = {}
    for name, positions in consumer_positions(layer).items():
        module = context.model.get_submodule(name)
        groups = module.groups if isinstance(module, CONVOLUTIONS) else 1  # others number all their inputs
        size = module.weight.shape[1] if isinstance(module, CONVOLUTIONS) else 0
        found[name] = np.hstack([positions + group * size for group in range(groups)])
    return found


def channels_first(module: nn.Module, x: Tensor) -> Tensor:
    """(N, channels, positions) of a consumer's input."""
    if channel_dim(module) == -1:
        return x.reshape(x.shape[0], -1, x.shape[-1]).transpose(1, 2)
    return x.flatten(2)


@dataclass
class _Counts:
    """What arrives at a consumer.

    Attributes:
        zeros: (channels,) exact zeros.
        magnitude: (channels,) Σ |x|.
        count: values a channel.
    """

    zeros: Tensor | float = 0.0
    magnitude: Tensor | float = 0.0
    count: int = 0

    def add(self, x: Tensor) -> None:
        """(N, channels, positions)."""
        self.zeros = self.zeros + (x == 0.0).sum((0, 2)).double()
        self.magnitude = self.magnitude + x.abs().sum((0, 2), dtype=torch.float64)
        self.count += x.shape[0] * x.shape[2]

    @property
    def means(self) -> Tensor:
        """(2, channels) zeros and Σ |x| a value."""
        return torch.stack([torch.as_tensor(self.zeros), torch.as_tensor(self.magnitude)]) / self.count


def _mean(context: Context, layer: ChannelLayer, which: int) -> Scores:
    means = context.store.get("activations", lambda: _count(context))
    consumers = consumer_channels(context, layer).items()
    found = [means[name][which].cpu().numpy()[channels].mean(1) for name, channels in consumers]
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def _count(context: Context) -> dict[str, Tensor]:
    """Consumer → `_Counts.means` of its input."""
    counts = {name: _Counts() for layer in channel_layers(context.structure) for name in consumer_positions(layer)}
    hooks = []
    for name, found in counts.items():
        module = context.model.get_submodule(name)
        hooks.append(
            module.register_forward_pre_hook(lambda m, args, found=found: found.add(channels_first(m, args[0])))
        )
    try:
        with torch.no_grad():
            for images, _ in context.calibration:
                call(context.model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.means for name, found in counts.items()}


def _tracked(images: Tensor) -> Tensor:
    """A copy that gradients are taken of: where everything before a consumer is frozen, there would be none."""
    copy = images.detach().clone()
    return copy.requires_grad_() * 1.0 if copy.is_floating_point() else copy


def _by_image(values: Tensor, images: int) -> Tensor:
    """(images, channels) sums of (N, channels, positions), double; N may count windows, or tokens before images."""
    if len(values) % images:
        values = values.transpose(0, 2)
    sums = values.sum(2, dtype=torch.float64)
    return sums.reshape(images, -1, sums.shape[1]).sum(1)


def _gates(context: Context) -> dict[str, Tensor]:
    """Layer → (units,) mean over images of |∂loss/∂gate|."""
    consumers = {layer.name: consumer_channels(context, layer) for layer in channel_layers(context.structure)}
    scores = {layer.name: np.zeros(layer.units) for layer in channel_layers(context.structure)}
    seen: list[tuple[str, Tensor]] = []
    hooks = []

    def tap(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()  # so that the gradient is that of this consumer alone
        seen.append((name, x))
        return tuple(x if value is args[0] else value for value in args)  # attention may be given it three times

    for name in {name for channels in consumers.values() for name in channels}:
        module = context.model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _m, args, name=name: tap(name, args)))
    images_seen = 0
    try:
        for images, labels in context.calibration:
            seen.clear()
            with torch.enable_grad():
                outputs = call(context.model, mapped(_tracked, images))
                loss = context.objective.losses(outputs, labels).sum()
                gradients = torch.autograd.grad(loss, [x for _, x in seen], allow_unused=True)
            slopes: dict[str, NDArray[np.float64]] = {}
            for (name, x), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    product = channels_first(context.model.get_submodule(name), x.detach() * gradient)
                    slopes[name] = slopes.get(name, 0.0) + _by_image(product, count(images)).cpu().numpy()
            for layer, channels in consumers.items():
                gates = [slopes[name][:, at].sum(2) for name, at in channels.items() if name in slopes]
                scores[layer] += np.abs(np.sum(gates, axis=0)).sum(0) if gates else 0.0
            images_seen += count(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: torch.from_numpy(score / images_seen) for layer, score in scores.items()}
