"""The shortcut of He et al.'s CIFAR ResNets (option A), as a module that can be cut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelPad(nn.Module):
    """Takes every `stride`-th pixel and pads the channels with zeros, half in front and half behind.

    Without parameters, and so without weights a pruner could narrow: what each output channel copies is kept in
    `source` instead, and `select` cuts that.

    Attributes:
        in_channels: channels of the input, as cut.
        out_channels: channels of the output, as cut.
        stride: pixels from one kept pixel to the next.
        intact: nothing has been cut yet; the forward pass is then a plain slice and pad.
        source: (out_channels,), int64: the input channel every output channel copies, -1 for zeros. It is part of
            the state only after a cut, so that published weights load strictly into the intact network.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """An intact shortcut.

        Raises:
            ValueError: fewer output than input channels, or a stride below 1.
        """
        super().__init__()
        if not 1 <= in_channels <= out_channels:
            raise ValueError(f"in_channels={in_channels}, out_channels={out_channels}: padding cannot remove channels")
        if stride < 1:
            raise ValueError(f"stride={stride}: must be at least 1")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.intact = True
        lead = (out_channels - in_channels) // 2
        source = torch.full((out_channels,), -1)
        source[lead : lead + in_channels] = torch.arange(in_channels)
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self.intact:
            lead = (self.out_channels - self.in_channels) // 2
            return F.pad(x, (0, 0, 0, 0, lead, self.out_channels - self.in_channels - lead))
        # One channel of zeros behind the others: index -1 is that one.
        return F.pad(x, (0, 0, 0, 0, 0, 1))[:, self.source]

    def select(self, keep_in: Tensor | None, keep_out: Tensor | None) -> None:
        """Narrow the shortcut in place; keeping everything, in order, leaves it as it is.

        Args:
            keep_in: (kept,), integers: the input channels that remain, in their new order; none keeps all. An output
                whose input is gone becomes zeros.
            keep_out: (kept,), integers: the output channels that remain, in their new order; none keeps all.

        Raises:
            ValueError: an empty or repeated selection, or a channel that does not exist. Nothing is cut then.
        """
        keep_in = self._checked("keep_in", keep_in, self.in_channels)
        keep_out = self._checked("keep_out", keep_out, self.out_channels)
        if _is_everything(keep_in, self.in_channels) and _is_everything(keep_out, self.out_channels):
            return
        renumbered = torch.full((self.in_channels,), -1, device=self.source.device)
        renumbered[keep_in] = torch.arange(len(keep_in), device=self.source.device)
        source = torch.where(self.source >= 0, renumbered[self.source], -1)[keep_out]
        self.register_buffer("source", source, persistent=True)
        self.in_channels, self.out_channels = len(keep_in), len(keep_out)
        self.intact = False

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}{'' if self.intact else ', cut'}"

    def _checked(self, name: str, keep: Tensor | None, channels: int) -> Tensor:
        if keep is None:
            return torch.arange(channels, device=self.source.device)
        if keep.dim() != 1 or keep.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name}: expected a 1-D tensor of channel indices, got {keep.dtype} {tuple(keep.shape)}")
        if len(keep) == 0:
            raise ValueError(f"{name} is empty: at least one channel must stay")
        if int(keep.min()) < 0 or int(keep.max()) >= channels:
            raise ValueError(f"{name} names channel {int(keep.max())}, of channels 0 to {channels - 1}")
        if len(set(keep.tolist())) != len(keep):
            raise ValueError(f"{name} names a channel twice")
        return keep.to(self.source.device, torch.int64)


def _is_everything(keep: Tensor, channels: int) -> bool:
    return torch.equal(keep, torch.arange(channels, device=keep.device))
