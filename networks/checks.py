"""Whether a network is one that can be pruned: known before anything takes long, told in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..storage.reading import shown
from ..training.inputs import Inputs, call, leaves, mapped, shape_of, told
from .inference import FAILURES
from .norms import LAYERS

_REMEDIES = {  # what a module has beside a weight that is computed of it → the call that makes it a plain tensor
    "{}_mask": "torch.nn.utils.prune.remove(module, {!r})",
    "{}_g": "torch.nn.utils.remove_weight_norm(module, {!r})",
    "{}_orig": "torch.nn.utils.remove_spectral_norm(module, {!r})",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, where it is wrapped: by torch.compile, or for several devices."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_weights(model: nn.Module) -> None:
    """Weights must be tensors of single precision, and parameters of their own.

    Cutting what a hook or a parametrization computes would not last.

    Raises:
        ValueError: it is scripted, quantised, without weights or their values, or of another precision, or a weight is
            computed of other tensors; the message names the call that helps.
    """
    if next(model.parameters(), None) is None:
        raise ValueError(f"the network ({type(model).__name__}) has no parameters: there is nothing to prune")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("the network is scripted or traced: pass the module that it was made from")
        if "quantized" in type(module).__module__.split("."):
            raise ValueError(f"{name} is quantised ({type(module).__name__}): prune first, then quantise")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values: load weights first")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}: call network.float() first, and .to(torch.{kind}) on what comes out")
    for name, module in model.named_modules():
        if not isinstance(module, (*LAYERS, nn.modules.batchnorm._BatchNorm)):
            continue
        for tensor in ("weight", "bias"):
            if parametrize.is_parametrized(module, tensor):
                remedy = f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r})"
            elif isinstance(vars(module).get(tensor), Tensor):
                found = (call for mark, call in _REMEDIES.items() if hasattr(module, mark.format(tensor)))
                remedy = next(found, "module.{} = torch.nn.Parameter(…)").format(tensor)
            else:
                continue
            raise ValueError(
                f"{name}.{tensor} is no parameter: it is computed from others (a mask, a weight or spectral norm, "
                f"another parametrization), and cannot be pruned like that; call {remedy} on {name} first"
            )


@torch.no_grad()
def check_forward(model: nn.Module, images: Inputs, run: Callable[[nn.Module, Inputs], Any] = call) -> Any:
    """Run it twice: it must give the same outputs each time, and leave the images alone.

    Args:
        model: in eval mode.
        images: (N, C, H, W), or what else it takes.
        run: gives its outputs.

    Returns:
        Its outputs.

    Raises:
        ValueError: it does not run on them, or does anything else.
    """
    given = mapped(torch.clone, images)
    try:
        outputs, again = run(model, given), run(model, mapped(torch.clone, images))
    except FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {told(shape_of(images))}: {reason}") from error
    if not _equal(given, images):
        raise ValueError(
            "the network changes the images it is given in place: let its forward begin with x = x.clone()"
        )
    if not _repeated(outputs, again):
        raise ValueError(
            "the network gives other outputs each time for the same images, in eval mode, too: its forward is random "
            "(F.dropout without training=self.training?) or remembers; make it deterministic in eval mode"
        )
    return outputs


def _equal(some: Inputs, others: Inputs) -> bool:
    theirs = leaves(others)
    return all(torch.equal(tensor, theirs[path]) for path, tensor in leaves(some).items())


def _repeated(outputs: Any, again: Any) -> bool:
    """Whether outputs of whatever form are the same, but for rounding: a thousandth of the largest of each tensor."""
    first, second = leaves(outputs), leaves(again)
    return first.keys() == second.keys() and all(_close(first[path], second[path]) for path in first)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()), equal_nan=True)


def made_by(factory: Callable[[], object]) -> nn.Module:
    """The network that a class, or a function of no arguments, makes.

    Raises:
        TypeError: it makes none.
    """
    if not callable(factory):
        raise TypeError(f"model = {shown(factory)}: give a network, its class, or a function that makes one")
    try:
        made = factory()
    except TypeError as error:
        raise TypeError(
            f"model = {shown(factory)} makes no network without arguments ({error}): give one made"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"model = {shown(factory)} makes {shown(made)}, which is no network (torch.nn.Module)")
    return made
