"""Which elements of which tensors are one channel: a forward pass is run, and labels follow what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from ...training.inputs import Inputs, call, leaves
from ..inference import FAILURES
from ..norms import LAYERS
from ..world import without_fast_attention
from . import layers as layers  # registers its rules
from . import moves as moves
from .follower import Follower, Trace


def follow(model: nn.Module, example: Inputs) -> Trace:
    """What becomes of every channel of a network, by one forward pass.

    Where layers are left that it did not call (auxiliary heads, which only training looks at), by a second one, in
    which the modules that hold them are in training mode: they take the channels that are left, too.

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
        _run(follower, model, example)
        with contextlib.suppress(*FAILURES), _in_training(model, follower.called) as some:
            if some:
                _run(follower, model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return follower.trace


def _run(follower: Follower, model: nn.Module, example: Inputs) -> None:
    with torch.no_grad(), without_fast_attention(), follower:
        outputs = call(model, example)
    for tensor in leaves(outputs).values():
        labels = follower.of(tensor)
        if labels is not None:
            follower.block(labels, "it is the network's output")


@contextlib.contextmanager
def _in_training(model: nn.Module, called: Collection[str]) -> Iterator[list[str]]:
    """For the length of a block whatever holds a layer that was not called; yields the names of these layers."""
    left = [name for name, module in model.named_modules() if isinstance(module, LAYERS) and name not in called]
    holders = {".".join(name.split(".")[:depth]) for name in left for depth in range(name.count(".") + 1)}
    modules = [model.get_submodule(name) for name in holders]
    before = [module.training for module in modules]
    for module in modules:
        module.training = True
    try:
        yield left
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
