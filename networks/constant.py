"""What stands in a residual branch that went altogether: nothing is computed, a constant comes out at its end."""

from __future__ import annotations

from torch import Tensor, nn

from .channel_norms import normalised_dim
from .norms import channel_dim


class Constant(nn.Module):
    """Gives what a layer gives when nothing goes in: the same number for every image and position, by channel.

    The output has the shape of the layer's own, and is a tensor of its own, as a forward may add to it in place. In
    front of the branch's last layer nobody looks at what it holds: there it is a single channel of zeros.

    Attributes:
        mean: (channels,) what comes out; none in front of the last layer.
        dim: of the channels.
        windows: for each spatial dimension kernel, step and border, by which its size follows; none where it stays.
    """

    mean: nn.Parameter | None

    def __init__(self, layer: nn.Module, mean: Tensor | None = None):
        """In a layer's place.

        Args:
            layer: a convolution, a linear layer, or a norm.
            mean: (channels,) what comes out; none for a single channel of zeros.
        """
        super().__init__()
        learns = any(parameter.requires_grad for parameter in layer.parameters())
        own = None if mean is None else nn.Parameter(mean.detach().clone(), requires_grad=learns)
        self.register_parameter("mean", own)
        along = normalised_dim(layer)
        self.dim = channel_dim(layer) if along is None else along
        self.windows: tuple[tuple[int, int, int], ...] = ()
        if isinstance(layer, nn.modules.conv._ConvNd):
            border = layer._reversed_padding_repeated_twice
            kernels = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
            self.windows = tuple(
                (d * (k - 1) + 1, s, sum(border[-2 * (i + 1) :][:2])) for i, (k, d, s) in enumerate(kernels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) or (N, …, C) to the layer's output shape."""
        shape = list(x.shape)
        shape[self.dim] = 1 if self.mean is None else len(self.mean)
        for place, (kernel, step, border) in enumerate(self.windows, 2):
            shape[place] = (shape[place] + border - kernel) // step + 1
        if self.mean is None:
            return x.new_zeros(shape)
        mean = self.mean.to(x.dtype)
        if self.dim == 1:
            mean = mean.reshape(-1, *[1] * (x.dim() - 2))
        return mean.expand(shape).clone()

    def reset_parameters(self) -> None:
        """As if it had never been trained: nothing comes out."""
        if self.mean is not None:
            nn.init.zeros_(self.mean)

    def extra_repr(self) -> str:
        """Shown by print(network)."""
        return f"{0 if self.mean is None else len(self.mean)}, dim={self.dim}, windows={self.windows}"
