"""Attention, operation by operation and with no size that is taken from its input: heads can be cut, and followed.

torch's own (nn.MultiheadAttention), torchvision's in windows (Swin, both versions), and over channels (XCiT, EdgeNeXt).
`open_attention` makes these of a network's; parameters and their names stay.
"""

from __future__ import annotations

import math
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IN_PROJECTION = ("in_proj_weight", "in_proj_bias")


class HeadAttention(nn.MultiheadAttention):
    """Computes what nn.MultiheadAttention does, with the parameters it has, for as many heads as are left.

    torch's own insists on heads · width of a head = width of the input, and hides its products from whoever counts or
    traces them. `open_attention` makes one of the other.
    """

    _qkv_same_embed_dim = property(lambda _self: False, lambda _self, _value: None)
    """What torch's encoder layers ask before they go round this forward by a fused kernel of their own."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, L, E), or (L, N, E) without `batch_first`, and, where needed, the weights (N, L, S), or by head."""
        alone = query is key and key is value
        if not self.batch_first:  # of one image alone, (L, E), nothing changes place
            query, key, value = (x.transpose(0, -2) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, alone)
        bias = _bias(q, attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
            weights = weights.mean(-3) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        out = self.out_proj(mixed.transpose(-3, -2).flatten(-2))
        return out if self.batch_first else out.transpose(0, -2), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, alone: bool) -> tuple[Tensor, ...]:
        """(…, heads, L, width of a head) each."""
        weights, biases = self.in_proj_weight, self.in_proj_bias
        if alone:
            all_three = F.linear(query, weights, biases).chunk(3, dim=-1)
            parts = [all_three[i] for i in range(3)]  # not unpacked: torch.fx follows this, too
        else:
            given = [None] * 3 if biases is None else biases.chunk(3)
            parts = list(map(F.linear, (query, key, value), weights.chunk(3), given))
        heads = (-1, (self.num_heads, -1))
        return tuple(part.unflatten(*heads).transpose(-3, -2) for part in parts)  # type: ignore[no-untyped-call]


class OpenEncoder(nn.TransformerEncoder):
    """nn.TransformerEncoder, one layer after the other and nothing else."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As torch's, without its short cuts for padded and nested inputs."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, bool(is_causal))
        return src if self.norm is None else self.norm(src)


class WindowAttention(nn.Module):
    """Attention inside windows, every other time shifted by half of one: what torchvision's Swin computes.

    Made by `open_attention` of torchvision's `ShiftedWindowAttention`, or the second version's, whose parameters it
    has; those take the width of a head from their input, and their layers' weights past the layers.

    Source: Liu et al., ICCV 2021, "Swin Transformer", section 3.2; CVPR 2022, "Swin Transformer V2", sections 3.2, 3.3.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    window_size: list[int]
    shift_size: list[int]
    attention_dropout: float
    dropout: float
    relative_position_index: Tensor
    relative_position_bias_table: Tensor
    relative_coords_table: Tensor
    cpb_mlp: nn.Module
    logit_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C)."""
        height, width = x.shape[1:3]
        down, across = self.window_size
        x = F.pad(x, (0, 0, 0, -width % across, 0, -height % down))
        sizes = [index(size) for size in x.shape[1:3]]
        shifts = [
            0 if window >= size else shift
            for window, size, shift in zip(self.window_size, sizes, self.shift_size, strict=True)
        ]
        windows = _windows(torch.roll(x, [-shift for shift in shifts], (1, 2)), self.window_size)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).movedim((-3, -2), (0, -3))
        if self._second:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.logit_scale.clamp(max=math.log(100.0)).exp()
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores = scores + self._places()
        if any(shifts):
            scores = scores + _apart(sizes, self.window_size, shifts, x.device)
        weights = F.dropout(torch.softmax(scores, dim=-1), self.attention_dropout, self.training)
        mixed = (weights @ v).transpose(-3, -2).flatten(-2)
        out = F.dropout(self.proj(mixed), self.dropout, self.training)
        out = out.reshape(*out.shape[:3], down, across, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return torch.roll(out, shifts, (1, 2))[:, :height, :width]

    @property
    def _second(self) -> bool:
        return hasattr(self, "logit_scale")

    def _places(self) -> Tensor:
        """(heads, tokens, tokens) what is added for where two tokens are to each other."""
        tokens = self.window_size[0] * self.window_size[1]
        if self._second:
            table: Tensor = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        found = table[self.relative_position_index].reshape(tokens, tokens, -1).permute(2, 0, 1)
        return 16.0 * torch.sigmoid(found) if self._second else found


def _windows(x: Tensor, window: list[int]) -> Tensor:
    """(N, H, W, …) to (N, windows down, windows across, tokens, …)."""
    images, tall, wide, *others = x.shape
    down, across = window
    parts = x.reshape(images, tall // down, down, wide // across, across, *others)
    return parts.transpose(2, 3).flatten(3, 4)


def _apart(sizes: list[int], window: list[int], shifts: list[int], device: torch.device) -> Tensor:
    """(windows down, windows across, 1, tokens, tokens) −100 between tokens that only the shift made neighbours."""
    parts = []
    for size, length, shift in zip(sizes, window, shifts, strict=True):
        place = torch.arange(size, device=device)
        parts.append((place >= size - length).int() + (place >= size - shift).int())
    part = _windows((3 * parts[0][:, None] + parts[1])[None], window)[0]
    return (part[..., None, :, None] != part[..., None, None, :]) * -100.0


class ChannelAttention(nn.Module):
    """Attention of channels to channels, head by head: cross-covariance attention, as timm's XCiT and EdgeNeXt have it.

    Made by `open_attention` of timm's, whose parameters it has.

    Source: El-Nouby et al., NeurIPS 2021, "XCiT: Cross-Covariance Image Transformers", section 3.2.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    temperature: Tensor
    attn_drop: nn.Module
    proj_drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        mixed: Tensor = self.attn_drop(scores.softmax(dim=-1)) @ v
        out: Tensor = self.proj_drop(self.proj(mixed.permute(0, 3, 1, 2).flatten(2)))
        return out


_OPENED: dict[str, type[nn.Module]] = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention": WindowAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": WindowAttention,
    "timm.models.edgenext.CrossCovarianceAttn": ChannelAttention,
    "timm.models.xcit.XCA": ChannelAttention,
}


def open_attention(model: nn.Module) -> nn.Module:
    """Make every attention in a network one of those in this module, in place, where there is one; returns the network.

    An nn.TransformerEncoder becomes an `OpenEncoder`. An nn.MultiheadAttention of other widths for keys and values, or
    with constant keys, is left as it is.
    """
    for module in model.modules():
        kind = type(module)
        if kind is nn.MultiheadAttention and _is_plain(module):
            module.__class__ = HeadAttention
        elif kind is nn.TransformerEncoder:
            module.__class__ = OpenEncoder
        elif (own := _OPENED.get(f"{kind.__module__}.{kind.__name__}")) is not None:
            module.__class__ = own
            if hasattr(module, "logit_scale"):
                _clear_keys(module)
    return model


@torch.no_grad()
def _clear_keys(attention: Any) -> None:
    """Swin's second version adds nothing to keys, whatever their bias is."""
    if attention.qkv.bias is not None:
        attention.qkv.bias.chunk(3)[1].zero_()


def _is_plain(attention: Any) -> bool:
    return attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn


def _bias(q: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """What is added to the scores, −∞ where a key is not looked at."""
    found = None
    if mask is not None:
        found = _additive(mask, q)
        if mask.dim() == 3:  # one for each image and head
            found = found.reshape(-1, q.shape[-3], *found.shape[1:])
    if padding is not None:
        hidden = _additive(padding, q)[..., None, None, :]
        found = hidden if found is None else found + hidden
    return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
