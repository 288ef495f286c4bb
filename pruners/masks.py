"""Zeros in place of what a method removes: the network keeps its shape, and can be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..networks.copying import rebuilt
from .context import Context
from .structure import Kept

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Masked:
    """Sets removed weights to zero, in place: after every step of an optimizer, whose momentum would bring them back.

    Attributes:
        masks: parameter name → 1 for what is kept.
    """

    masks: Masks

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """On this network."""
        for name, mask in self.masks.items():
            model.get_parameter(name).mul_(mask)


def tighten(context: Context, model: nn.Module, kept: Kept) -> Masked:
    """Put zeros where the method keeps nothing (`Method.masked`), in place, and return what holds them there.

    Args:
        context: of the dense network; the units of a network in training are ranked by what it has, or remembers.
        model: of the dense network's shape; modules without parameters that carry removed units on are replaced.
        kept: (layers,) units kept.

    Raises:
        ValueError: the method does more than put zeros.
    """
    full = rebuilt(model, _without_zeros)  # what is zero in it afterwards was put there by the method
    masked = context.method.masked(replace(context, model=full), kept)
    found = Masked({name: (p != 0).to(p.dtype) for name, p in masked.named_parameters() if bool((p == 0).any())})
    for name, parameter in masked.named_parameters():
        if not torch.equal(parameter, torch.where(parameter == 0, 0.0, full.get_parameter(name))):
            raise ValueError(
                f"schedule = 'gradual' spreads zeros, and method = {context.method.name!r} changes what is not zero "
                f"({name}): take another schedule"
            )
    found(model)
    for name, module in masked.named_modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is None:
            ours = model.get_submodule(name)
            if any(not torch.equal(buffer, ours.get_buffer(key)) for key, buffer in module.named_buffers()):
                model.set_submodule(name, module.train(ours.training))
    return found


def _without_zeros(_name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.where(tensor == 0, torch.finfo(tensor.dtype).tiny, tensor)
