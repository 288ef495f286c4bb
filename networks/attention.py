"""nn.MultiheadAttention, operation by operation, so that heads can be cut and what it computes be followed."""

from __future__ import annotations

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


def open_attention(model: nn.Module) -> nn.Module:
    """Make every plain nn.MultiheadAttention in a network a `HeadAttention`, in place; returns the network.

    An nn.TransformerEncoder becomes an `OpenEncoder`.

    Those of other widths for keys and values, and with constant keys, are left as they are.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            module.__class__ = HeadAttention
        elif type(module) is nn.TransformerEncoder:
            module.__class__ = OpenEncoder
    return model


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
