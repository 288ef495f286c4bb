"""What weights and inputs become in networks of very few bits: each formula as a function, trained straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .straight import in_steps, straight, straight_sign

THRESHOLD = 0.7  # of the mean size of a filter's weights, below which they are 0 (Li, Zhang, Liu 2016, sec. 2.2)


def binary_weight(weight: Tensor) -> Tensor:
    """α sign(w), α = mean |w| of every filter: the closest to it of that form.

    Binary-Weight-Networks: Rastegari et al., ECCV 2016 (arXiv 1603.05279), eqs. 4 to 6.
    """
    return _row_mean(weight.abs()) * straight_sign(weight)


def ternary_weight(weight: Tensor) -> Tensor:
    """α, 0 or −α: 0 where |w| ≤ Δ = 0.7 mean |w| of the filter, α the mean |w| of the others.

    Ternary Weight Networks: Li, Zhang, Liu 2016 (arXiv 1605.04711), eqs. 3 to 6.
    """
    size = weight.detach().abs()
    stays = size > THRESHOLD * _row_mean(size)
    alpha = _row_mean(size * stays) / _row_mean(stays.to(size.dtype)).clamp_min(torch.finfo(size.dtype).tiny)
    return straight(weight, alpha * weight.detach().sign() * stays)


def dorefa_weight(weight: Tensor, bits: int) -> Tensor:
    """2 quantise_k(tanh w / (2 max |tanh w|) + ½) − 1; of one bit sign(w) · mean |w| of the layer.

    DoReFa-Net: Zhou et al. 2016 (arXiv 1606.06160), eqs. 8 and 9.
    """
    if bits == 1:
        return straight(weight, torch.where(weight >= 0, 1.0, -1.0) * weight.detach().abs().mean())
    bent = weight.tanh()
    most = bent.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return 2.0 * in_steps(bent / (2.0 * most) + 0.5, bits) - 1.0


def dorefa_input(x: Tensor, bits: int) -> Tensor:
    """quantise_k of what lies in [0, 1]; what is beyond is clipped (eq. 11)."""
    return in_steps(x.clamp(0.0, 1.0), bits)


def xnor_scale(module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """K: for every output position the mean |x| of what its filter sees (Rastegari et al., eq. 11 and sec. 3.2).

    Returns:
        (N, groups · outputs a group or 1, H, W) or (…, 1), to multiply the output with.
    """
    if isinstance(module, nn.Linear):
        return x.abs().mean(-1, keepdim=True)
    groups: int = module.groups
    mean = x.abs().reshape(len(x), groups, -1, *x.shape[2:]).mean(2)
    box = torch.full((groups, 1, *module.kernel_size), 1.0 / float(module.weight[0, 0].numel()), device=x.device)
    settings: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation")}
    scale = F.conv2d(mean, box.to(x.dtype), groups=groups, **settings)
    return scale.repeat_interleave(module.out_channels // groups, 1) if groups > 1 else scale


def _row_mean(weight: Tensor) -> Tensor:
    """(q, 1, …) of (q, …)."""
    return weight.mean(tuple(range(1, weight.dim())), keepdim=True)
