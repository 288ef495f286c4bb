"""Attention that is computed operation by operation is torch's, whatever it is asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from secateur.networks.attention import (
    ChannelAttention,
    HeadAttention,
    OpenEncoder,
    WindowAttention,
    open_attention,
)
from secateur.networks.graph import Walk, trace

WIDTH, HEADS, IMAGES, TOKENS, KEYS = 12, 3, 4, 5, 7


def made(**arguments: Any) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """torch's, and one of ours with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.MultiheadAttention(WIDTH, HEADS, **arguments).eval()
        nn.init.normal_(theirs.in_proj_weight, std=0.5)
        if theirs.in_proj_bias is not None:
            nn.init.normal_(theirs.in_proj_bias, std=0.5)
    ours = open_attention(nn.Sequential(copy.deepcopy(theirs)))[0]
    assert type(ours) is HeadAttention
    return theirs, ours


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_alike(theirs: Any, ours: Any) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    assert (ours[1] is None) == (theirs[1] is None)
    if ours[1] is not None:
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": torch.triu(torch.ones(TOKENS, TOKENS, dtype=torch.bool), 1)},
        {"attn_mask": drawn(TOKENS, TOKENS), "need_weights": False},
        {"attn_mask": drawn(IMAGES * HEADS, TOKENS, TOKENS)},
        {"key_padding_mask": torch.arange(TOKENS).expand(IMAGES, -1) > 2},
        {
            "key_padding_mask": torch.arange(TOKENS).expand(IMAGES, -1) > 3,
            "attn_mask": torch.triu(torch.ones(TOKENS, TOKENS, dtype=torch.bool), 1),
            "need_weights": False,
        },
    ],
)
def test_it_is_torchs(batch_first: bool, bias: bool, asked: dict[str, Any]) -> None:
    theirs, ours = made(batch_first=batch_first, bias=bias)
    x = drawn(IMAGES, TOKENS, WIDTH) if batch_first else drawn(TOKENS, IMAGES, WIDTH)
    with torch.no_grad():
        assert_alike(theirs(x, x, x, **asked), ours(x, x, x, **asked))


@pytest.mark.parametrize("batch_first", [True, False])
def test_queries_of_one_kind_and_keys_of_another(batch_first: bool) -> None:
    theirs, ours = made(batch_first=batch_first)
    q, k, v = drawn(IMAGES, TOKENS, WIDTH), drawn(IMAGES, KEYS, WIDTH), drawn(IMAGES, KEYS, WIDTH) + 1.0
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    with torch.no_grad():
        assert_alike(theirs(q, k, v), ours(q, k, v))
        assert_alike(theirs(q, k, k, need_weights=False), ours(q, k, k, need_weights=False))


def test_one_image_alone() -> None:
    theirs, ours = made()
    x = drawn(TOKENS, WIDTH)
    with torch.no_grad():
        assert_alike(theirs(x, x, x), ours(x, x, x))


def test_state_is_kept_by_name_and_other_kinds_are_left_alone() -> None:
    theirs, ours = made()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    odd = [nn.MultiheadAttention(8, 2, kdim=6, vdim=6), nn.MultiheadAttention(8, 2, add_bias_kv=True)]
    odd.append(nn.MultiheadAttention(8, 2, add_zero_attn=True))
    assert [type(module) for module in open_attention(nn.Sequential(*odd))] == [nn.MultiheadAttention] * 3


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((6, 6), (3, 3), (0, 0)), ((6, 6), (3, 3), (1, 1)), ((7, 8), (3, 4), (1, 2)), ((3, 9), (4, 3), (2, 1))],
)
def test_attention_in_windows_is_torchvisions(
    second: bool, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> None:
    kind = ShiftedWindowAttentionV2 if second else ShiftedWindowAttention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = kind(WIDTH, list(window), list(shift), HEADS).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.5)
    ours = open_attention(nn.Sequential(copy.deepcopy(theirs)))[0]
    assert type(ours) is WindowAttention
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = drawn(IMAGES, *size, WIDTH)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)
        graph = trace(nn.Sequential(ours), x[:1])
        torch.testing.assert_close(Walk(graph, nn.Sequential(ours), [x]).result()[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["edgenext.CrossCovarianceAttn", "xcit.XCA"])
def test_attention_of_channels_is_timms(name: str) -> None:
    models = pytest.importorskip("timm.models")
    module, _, kind = name.partition(".")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = getattr(getattr(models, module), kind)(WIDTH, HEADS, qkv_bias=True).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.5)
    ours = open_attention(nn.Sequential(copy.deepcopy(theirs)))[0]
    assert type(ours) is ChannelAttention
    x = drawn(IMAGES, TOKENS, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_is_torchs_and_can_be_traced(norm_first: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, norm_first=norm_first, batch_first=True)
        theirs = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten()).eval()
    ours = open_attention(copy.deepcopy(theirs))
    assert type(ours[0]) is OpenEncoder
    x = drawn(IMAGES, TOKENS, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        graph = trace(ours, x[:1])
        assert {str(node.target) for node in graph.nodes} >= {"0.layers.1.self_attn.out_proj", "0.layers.0.linear2"}
        torch.testing.assert_close(Walk(graph, ours, [x]).result()[0], ours(x), rtol=1e-4, atol=1e-5)
