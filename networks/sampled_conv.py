"""A convolution that takes only some of its input's channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SampledConv2d(nn.Conv2d):
    """Samples the channels it needs from its input and convolves those.

    A residual block's first convolution shares its input with the shortcut, so that input cannot be cut; but the
    convolution need not look at all of it.

    Attributes:
        source: (in_channels,) int64: the channel of the input that each channel of the weight is for.

    Source: He, Zhang, Sun, ICCV 2017, "Channel Pruning", section 3.3, "multi-branch" networks.
    """

    source: Tensor

    @classmethod
    def of(cls, conv: nn.Conv2d, source: Tensor) -> SampledConv2d:
        """A convolution whose weight has been narrowed to these channels; it shares the tensors."""
        sampled = cls(
            len(source),
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            padding_mode=conv.padding_mode,
            device="meta",
        )
        sampled.weight, sampled.bias = conv.weight, conv.bias
        sampled.register_buffer("source", source)
        return sampled.train(conv.training)

    def prepared(self, x: Tensor) -> Tensor:
        """Of (N, channels, H, W) those of `source`: what the weight is laid on."""
        return torch.index_select(x, 1, self.source)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), of which `source` is taken."""
        return super().forward(self.prepared(x))
