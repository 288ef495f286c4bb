"""What a fit needs to know of a consumer: its inputs as a regression problem, and their moments."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.norms import CONVOLUTIONS
from ...networks.own_convolutions import PREPARING
from ...networks.quantise.quantisers import Quantised

SAMPLES = 64  # output positions an image that a fit looks at

EPS = torch.finfo(torch.float32).eps

MOST_INPUTS = 8192  # kernel positions · inputs a group that a fit can hold


class Sampler:
    """Reads a consumer's inputs and outputs as a regression problem, at a sample of positions an image.

    Neighbouring positions see nearly the same pixels: a few dozen an image say as much as all of them (He et al.
    take 10), and the Gram matrix is what a repair's time goes into.

    Attributes:
        module: a linear layer, or a convolution of one to three dimensions (any kernel, stride, padding, dilation,
            groups).
        samples: at most this many output positions an image, the same ones for every image.
    """

    def __init__(self, module: nn.Module, samples: int = SAMPLES):
        self.module = module
        self.samples = samples
        self.groups = module.groups if isinstance(module, CONVOLUTIONS) else 1

    def inputs(self, x: Tensor) -> Tensor:
        """(groups, samples, kernel positions · inputs a group) of an input (N, C, …) or (N, …, C).

        They are what the weights are multiplied with: of a layer whose inputs are on a grid, those on it.
        """
        module = self.module
        if isinstance(module, Quantised):
            x = module.quantiser.inputs(x)
        if isinstance(module, nn.Linear):
            return x.reshape(-1, x.shape[-1]).unsqueeze(0)
        assert isinstance(module, CONVOLUTIONS)
        if isinstance(module, PREPARING):
            x = module.prepared(x)
        padding = module._reversed_padding_repeated_twice  # last dimension first, as F.pad wants it
        if any(padding):
            x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        images, channels, *sizes = x.shape
        index = self._index(sizes).to(x.device)
        rows = x.flatten(2).transpose(1, 2).index_select(1, index.flatten())
        rows = rows.reshape(images * index.shape[0], index.shape[1], self.groups, channels // self.groups)
        if channels == self.groups:  # depthwise: samples side by side, or every product would stride over all groups
            return rows.reshape(-1, channels).t().contiguous().reshape(channels, *rows.shape[:2])
        return rows.permute(2, 0, 1, 3).reshape(self.groups, rows.shape[0], -1)

    def outputs(self, y: Tensor) -> Tensor:
        """(groups, samples, outputs a group) of an output; samples in the order of `inputs`."""
        return self.grouped(self.rows(y))

    def rows(self, y: Tensor) -> Tensor:
        """(samples, outputs) of an output."""
        if isinstance(self.module, nn.Linear):
            return y.reshape(-1, y.shape[-1])
        y = y.movedim(1, -1).flatten(1, -2)
        return y.index_select(1, _choice(y.shape[1], self.samples).to(y.device)).flatten(0, 1)

    def grouped(self, rows: Tensor) -> Tensor:
        """(groups, samples, outputs a group) of (samples, outputs)."""
        return rows.reshape(len(rows), self.groups, rows.shape[1] // self.groups).transpose(0, 1)

    def weight(self, weight: Tensor) -> Tensor:
        """(groups, outputs a group, kernel positions · inputs a group), double, of a weight of the module's kind."""
        kernel = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
        return kernel.transpose(1, 2).reshape(self.groups, weight.shape[0] // self.groups, -1).double()

    def unweight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `weight`: back to the shape and type of `like`."""
        kernel = matrix.reshape(like.shape[0], -1, like.shape[1]).transpose(1, 2)
        # plain strides: with those that a 1×1 kernel comes out with, oneDNN's backward pass writes beyond its memory
        return kernel.reshape(like.shape).to(like.dtype).clone(memory_format=torch.contiguous_format)

    def _index(self, sizes: list[int]) -> Tensor:
        """(samples an image, kernel positions) into a padded image's pixels, its dimensions laid out as one."""
        module = self.module
        assert isinstance(module, CONVOLUTIONS)
        corner = window = torch.zeros(1, dtype=torch.int64)
        steps = zip(sizes, module.kernel_size, module.stride, module.dilation, strict=True)
        for size, kernel, stride, dilation in steps:  # an outer sum over dimensions, the last one fastest
            places = torch.arange(0, size - dilation * (kernel - 1), stride)
            corner = (corner[:, None] * size + places).flatten()
            window = (window[:, None] * size + torch.arange(kernel) * dilation).flatten()
        return corner[_choice(len(corner), self.samples)][:, None] + window


@functools.lru_cache(maxsize=256)
def _choice(positions: int, samples: int) -> Tensor:
    """(at most `samples`,) of an image's output positions, the same ones for every image; ascending."""
    if positions <= samples:
        return torch.arange(positions)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(positions, generator=generator)[:samples].sort().values


def repairable(module: nn.Module) -> bool:
    """Whether least squares can re-fit it: linear layers and convolutions.

    Not where it has more than `MOST_INPUTS` (the first linear layer of a VGG: 25,088, whose Gram matrix alone is 5 GB).
    """
    return isinstance(module, (*CONVOLUTIONS, nn.Linear)) and module.weight[0].numel() <= MOST_INPUTS


class Moments:
    """First and second moments of inputs x and targets t over samples, a group each.

    Summed about the mean of the first batch: products are taken in single precision, and where a feature's mean is
    many times its deviation, a covariance would otherwise be what two huge sums leave of each other.

    Attributes:
        count: samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin_x = self._origin_t = torch.zeros(())
        self._x = self._t = self._xx = self._xt = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Count samples: x (groups, n, p), t (groups, n, q)."""
        if self.count == 0:
            self._origin_x = x.mean(1, keepdim=True)
            self._origin_t = self._origin_t if t is None else t.mean(1, keepdim=True)
        self.count += x.shape[1]
        x = x - self._origin_x
        self._x = self._x + x.sum(1).double()
        self._xx = _added(self._xx, self_product(x))
        if t is not None:
            t = t - self._origin_t
            self._t = self._t + t.sum(1).double()
            self._xt = _added(self._xt, x.transpose(1, 2) @ t)

    def state(self) -> dict[str, Tensor]:
        """What the inputs' moments are made of, by name; `restored` makes them again."""
        return {"count": torch.tensor(self.count), "origin": self._origin_x, "x": self._x, "xx": self._xx}

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], device: torch.device) -> Moments:
        """The moments that `state` described, without targets; to look at, since they share its tensors."""
        moments = cls()
        moments.count = int(state["count"])
        moments._origin_x, moments._x, moments._xx = (state[name].to(device) for name in ("origin", "x", "xx"))
        return moments

    def narrowed(self, groups: Tensor, inputs: Tensor) -> Moments:
        """Those of some groups and inputs alone, without targets; positions ascending."""
        moments = Moments()
        moments.count = self.count
        moments._origin_x = self._origin_x[groups][:, :, inputs]
        moments._x = self._x[groups][:, inputs]
        moments._xx = self._xx[groups][:, inputs][:, :, inputs]
        return moments

    @property
    def mean(self) -> Tensor:
        """(groups, p) of the inputs."""
        return self._origin_x.squeeze(1).double() + self._x / self.count

    def centered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x (groups, p) and t (groups, q), and the covariances xx (groups, p, p) and xt (groups, p, q)."""
        x, t = self._x / self.count, self._t / self.count
        xx = self._xx / self.count  # from here on in place: of a VGG's widest layers every copy is 170 MB
        for rows in _strips(xx):
            xx[:, rows] -= x[:, rows].unsqueeze(2) * x.unsqueeze(1)
        varies = xx.diagonal(dim1=1, dim2=2) > (8.0 * EPS * self.mean).square()  # else a constant and rounding errors
        xx *= varies.unsqueeze(2)
        xx *= varies.unsqueeze(1)
        if not t.dim():
            return self.mean, t, xx, self._xt
        xt = (self._xt / self.count - x.unsqueeze(2) * t.unsqueeze(1)) * varies.unsqueeze(2)
        return self.mean, self._origin_t.squeeze(1).double() + t, xx, xt

    def raw(self) -> tuple[Tensor, Tensor]:
        """The means of x·xᵀ (groups, p, p) and x·tᵀ (groups, p, q), not centred."""
        x, t, xx, xt = self.centered()
        for rows in _strips(xx):
            xx[:, rows] += x[:, rows].unsqueeze(2) * x.unsqueeze(1)
        return xx, xt + x.unsqueeze(2) * t.unsqueeze(1) if t.dim() else xt


def _strips(matrix: Tensor, rows: int = 512) -> list[slice]:
    """Of the rows of (groups, p, p): what is added to them then needs no second matrix."""
    return [slice(start, start + rows) for start in range(0, matrix.shape[1], rows)]


def _added(total: Tensor, product: Tensor) -> Tensor:
    """A sum in double precision, in place once there is one."""
    return total.add_(product) if total.dim() else product.double()


def self_product(x: Tensor) -> Tensor:
    """(…, p, p) xᵀx of x (…, n, p), in strips: half of it is the other half's mirror image."""
    inputs = x.shape[-1]
    strip = max(128, -(-inputs // 8))
    if inputs <= strip:
        return x.transpose(-2, -1) @ x
    products = x.new_empty(*x.shape[:-2], inputs, inputs)
    for start in range(0, inputs, strip):
        part = x[..., start : start + strip].transpose(-2, -1) @ x[..., start:]
        products[..., start : start + strip, start:] = part
        products[..., start:, start : start + strip] = part.transpose(-2, -1)
    return products
