"""Whether a network is one that can be pruned: known before anything takes long, told in one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .inference import FAILURES
from .norms import CONVOLUTIONS

_REMEDIES = {  # what a module has beside a weight that is computed of it → the call that makes it a plain tensor
    "{}_mask": "torch.nn.utils.prune.remove(module, {!r})",
    "{}_g": "torch.nn.utils.remove_weight_norm(module, {!r})",
    "{}_orig": "torch.nn.utils.remove_spectral_norm(module, {!r})",
}


def check_weights(model: nn.Module) -> None:
    """Weights must be parameters of their own: cutting what a hook or a parametrization computes would not last.

    Raises:
        ValueError: one is computed of other tensors; the message names the call that makes it a plain one.
    """
    for name, module in model.named_modules():
        if not isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.modules.batchnorm._BatchNorm)):
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
def check_forward(model: nn.Module, images: Tensor) -> int:
    """Run it twice: it must give one row of logits an image, the same ones each time, and leave the images alone.

    Args:
        model: in eval mode.
        images: (N, C, H, W).

    Returns:
        How many classes it tells.

    Raises:
        ValueError: it does not run on them, or does anything else.
    """
    shape = "×".join(map(str, images.shape[1:]))
    given = images.clone()
    try:
        outputs, again = model(given), model(images.clone())
    except FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {shape}: {reason}") from error
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the network returns {type(outputs).__name__}, not one tensor of logits: wrap it in a module")
    if outputs.dim() != 2 or len(outputs) != len(images) or outputs.shape[1] < 2:
        raise ValueError(
            f"of {len(images)} images the network makes an output of shape {tuple(outputs.shape)}: logits "
            f"({len(images)}, classes) are needed, one row an image and two classes or more; wrap it in a module"
        )
    if not torch.equal(given, images):
        raise ValueError(
            "the network changes the images it is given in place: let its forward begin with x = x.clone()"
        )
    if not torch.allclose(outputs, again, rtol=1e-3, atol=1e-3 * float(outputs.abs().max()), equal_nan=True):
        raise ValueError(
            "the network gives other outputs each time for the same images, in eval mode, too: its forward is random "
            "(F.dropout without training=self.training?) or remembers; make it deterministic in eval mode"
        )
    return outputs.shape[1]
