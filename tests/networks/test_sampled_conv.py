"""A convolution that samples its input is the whole one with zeros in its weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.networks import SampledConv2d


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2, "bias": False}, {"dilation": 2, "padding": 2, "padding_mode": "reflect"}]
)
def test_it_computes_what_the_whole_one_does_without_the_other_channels(options: dict[str, object]) -> None:
    whole = nn.Conv2d(6, 4, 3, **options).eval()  # type: ignore[arg-type]
    keep = torch.tensor([1, 2, 5])
    narrowed = nn.Conv2d(3, 4, 3, **options)  # type: ignore[arg-type]
    narrowed.weight = nn.Parameter(whole.weight.detach()[:, keep])
    narrowed.bias = whole.bias
    sampled = SampledConv2d.of(narrowed, keep)
    assert sampled.weight is narrowed.weight
    with torch.no_grad():
        whole.weight[:, [0, 3, 4]] = 0.0
        x = torch.randn(2, 6, 9, 9)
        torch.testing.assert_close(sampled(x), whole(x))


def test_what_it_samples_is_part_of_its_state() -> None:
    first = SampledConv2d.of(nn.Conv2d(2, 4, 1), torch.tensor([0, 3]))
    second = SampledConv2d.of(nn.Conv2d(2, 4, 1), torch.tensor([1, 2]))
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 5, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(first(x), second(x), rtol=0, atol=0)
