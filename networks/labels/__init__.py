"""Which elements of which tensors are one channel: a forward pass is run, and labels follow what it computes."""

from __future__ import annotations

import torch
from torch import nn

from ...training.inputs import Inputs, call, leaves
from ..world import without_fast_attention
from . import layers as layers  # registers its rules
from . import moves as moves
from .follower import Follower, Trace


def follow(model: nn.Module, example: Inputs) -> Trace:
    """What becomes of every channel of a network, by one forward pass.

    Args:
        model: in eval mode; hooks are put on it and taken off again.
        example: images (N, C, H, W), or what else it takes.
    """
    follower = Follower(model)
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(follower.entering(name)))
        hooks.append(module.register_forward_hook(follower.leaving))
    try:
        with torch.no_grad(), without_fast_attention(), follower:
            outputs = call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    for tensor in leaves(outputs).values():
        labels = follower.of(tensor)
        if labels is not None:
            follower.block(labels, "it is the network's output")
    return follower.trace
