"""Repair the surviving weights by least squares, so that features match the dense network's.

Channel pruning (He, Zhang, Sun, ICCV 2017, eq. 1 with β fixed): of a consumer with unfolded inputs X and dense
weights W, the inputs S survive. Fitted is min ‖T − X_S V − b‖² + λ‖V − W_S‖², towards the target T = X W + b₀ of the
dense network. Everything that needs images is the second moments of X, collected once; after that any S is one
small linear system. The intercept goes into the bias, or into the running mean of the batch norm behind.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..networks import SampledConv2d
from .layers import Selection, Structure

RIDGE = 1e-4  # the least there is, of the mean squared input; towards the old weights, so it bounds a fit's step

PLACES = 64  # output positions an image that a fit looks at

EPS = torch.finfo(torch.float32).eps

MOST_INPUTS = 8192  # kernel positions · inputs a group that a fit can hold

Batches = Sequence[tuple[Tensor, Tensor]]


class Sampler:
    """Reads a consumer's inputs and outputs as a regression problem, at a sample of positions an image.

    Neighbouring positions see nearly the same pixels: a few dozen an image say as much as all of them (He et al.
    take 10), and the Gram matrix is what a repair's time goes into.

    Attributes:
        module: a linear layer, or a convolution of one or two dimensions (any kernel, stride, padding, dilation,
            groups).
        places: at most this many output positions an image, the same ones for every image.
    """

    def __init__(self, module: nn.Module, places: int = PLACES):
        self.module = module
        self.places = places
        self.groups = module.groups if isinstance(module, (nn.Conv1d, nn.Conv2d)) else 1

    def inputs(self, x: Tensor) -> Tensor:
        """(groups, samples, kernel positions · inputs a group) of an input (N, C, H, W), (N, C, L) or (N, …, C)."""
        module = self.module
        if isinstance(module, nn.Linear):
            return x.reshape(-1, x.shape[-1]).unsqueeze(0)
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        if isinstance(module, SampledConv2d):
            x = x.index_select(1, module.source)
        padding = module._reversed_padding_repeated_twice  # last dimension first, as F.pad wants it
        if any(padding):
            x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        if isinstance(module, nn.Conv1d):
            x = x.unsqueeze(2)
        images, channels, height, width = x.shape
        index = self._index(height, width).to(x.device)
        rows = x.permute(0, 2, 3, 1).reshape(images, height * width, channels).index_select(1, index.flatten())
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
        return y.index_select(1, _choice(y.shape[1], self.places).to(y.device)).flatten(0, 1)

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
        return kernel.reshape(like.shape).to(like.dtype)

    def _index(self, height: int, width: int) -> Tensor:
        """(samples an image, kernel positions) into a padded image's pixels."""
        module = self.module
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        (kh, kw), (sh, sw), (dh, dw) = ((1, *v)[-2:] for v in (module.kernel_size, module.stride, module.dilation))
        down = torch.arange(0, height - dh * (kh - 1), sh)
        across = torch.arange(0, width - dw * (kw - 1), sw)
        corner = (down[:, None] * width + across).flatten()
        window = (torch.arange(kh)[:, None] * dh * width + torch.arange(kw) * dw).flatten()
        return corner[_choice(len(corner), self.places)][:, None] + window


@functools.lru_cache(maxsize=256)
def _choice(positions: int, places: int) -> Tensor:
    """(at most `places`,) of an image's output positions, the same ones for every image; ascending."""
    if positions <= places:
        return torch.arange(positions)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(positions, generator=generator)[:places].sort().values


def repairable(module: nn.Module) -> bool:
    """Whether least squares can re-fit it: linear layers and convolutions of one or two dimensions.

    Not where it has more than `MOST_INPUTS` (the first linear layer of a VGG: 25,088, whose Gram matrix alone is 5 GB).
    """
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and module.weight[0].numel() <= MOST_INPUTS


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
        self._xx = self._xx + self_product(x).double()
        if t is not None:
            t = t - self._origin_t
            self._t = self._t + t.sum(1).double()
            self._xt = self._xt + (x.transpose(1, 2) @ t).double()

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """What the inputs' moments are made of, by name; `restored` makes them again."""
        state = {"count": torch.tensor(self.count), "origin": self._origin_x, "x": self._x, "xx": self._xx}
        return {prefix + name: tensor for name, tensor in state.items()}

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], prefix: str, device: torch.device) -> Moments:
        """The moments that `state` described, without targets."""
        moments = cls()
        moments.count = int(state[f"{prefix}count"])
        moments._origin_x, moments._x, moments._xx = (state[prefix + name].to(device) for name in ("origin", "x", "xx"))
        return moments

    @property
    def mean(self) -> Tensor:
        """(groups, p) of the inputs."""
        return self._origin_x.squeeze(1).double() + self._x / self.count

    def centered(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x (groups, p) and t (groups, q), and the covariances xx (groups, p, p) and xt (groups, p, q)."""
        x, t = self._x / self.count, self._t / self.count
        xx = self._xx / self.count - x.unsqueeze(2) * x.unsqueeze(1)
        varies = xx.diagonal(dim1=1, dim2=2) > (8.0 * EPS * self.mean).square()  # else a constant and rounding errors
        xx = xx * varies.unsqueeze(2) * varies.unsqueeze(1)
        if not t.dim():
            return self.mean, t, xx, self._xt
        xt = (self._xt / self.count - x.unsqueeze(2) * t.unsqueeze(1)) * varies.unsqueeze(2)
        return self.mean, self._origin_t.squeeze(1).double() + t, xx, xt

    def raw(self) -> tuple[Tensor, Tensor]:
        """The means of x·xᵀ (groups, p, p) and x·tᵀ (groups, p, q), not centred."""
        x, t, xx, xt = self.centered()
        return xx + x.unsqueeze(2) * x.unsqueeze(1), xt + x.unsqueeze(2) * t.unsqueeze(1) if t.dim() else xt


def damping(samples: float, inputs: int, ridge: float = RIDGE) -> float:
    """The relative ridge of a fit: the fewer samples an input, the less they are believed.

    The best ridge is p/n · (1 − R²)/R² of the mean squared input, for p inputs of equal variance, n samples and steps
    of any direction (Hoerl, Kennard, Baldwin 1975: p·σ²/‖β‖²); half of what was lost can be made good, so (1 − R²)/R²
    is 1. With too little of it a fit to fewer images than inputs passes through all of them, is far off on any other,
    and the next layer's fit is far off on top: logits 10⁵ times their spread away.

    Args:
        samples: n that the moments were summed over, or as many of them as count as independent.
        inputs: p.
        ridge: the least.
    """
    return max(ridge, inputs / samples)


def ridge_step(gram: Tensor, cross: Tensor, ridge: float = RIDGE) -> Tensor:
    """argmin over D of ‖R − X D‖² + λ‖D‖², λ = ridge · mean diagonal of the Gram matrix.

    Args:
        gram: (…, p, p) XᵀX, double.
        cross: (…, p, q) XᵀR of what is still missing.
        ridge: relative to the mean squared input.

    Returns:
        (…, p, q) the step; 0 where the inputs are all zero, and where what it would take from ‖R − X D‖² is not
        positive or not finite. It always is in exact arithmetic, but not with moments that overflowed or whose
        rounding errors are larger than the ridge.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    step = ridge_solve(gram, cross, ridge * scale)
    gain = (step * (2.0 * cross - gram @ step)).sum((-2, -1), keepdim=True)
    return torch.where(gain >= 0.0, step, 0.0)


def ridge_solve(matrix: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """(matrix + added · I)⁻¹ right, of positive semi-definite matrices (…, n, n); 0 where one is not finite."""
    if not bool(torch.isfinite(matrix.sum())):
        return torch.zeros_like(right)
    damped = matrix.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(added.clamp_min(torch.finfo(matrix.dtype).tiny).unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool((info > 0).any()):  # not positive definite in floating point: as good as singular
        solved: Tensor = torch.linalg.pinv(damped, hermitian=True) @ right
        return solved
    return torch.cholesky_solve(right, factor)


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


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often tensors are looked at.

    Attributes:
        made: what is watched, (name, tensor); held, so that ids stay unique.
        count: by id.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[str, Tensor]] = []
        self.count: dict[int, int] = {}

    def watch(self, name: str, tensor: Tensor) -> None:
        """Count from here on."""
        self.made.append((name, tensor))
        self.count[id(tensor)] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.count:
                self.count[id(value)] += 1
        return func(*args, **(kwargs or {}))


def following_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Convolution or linear layer → the batch norm that takes its output, where nothing else does.

    A constant can then be moved from one to the other. Not so where the output goes somewhere else too (a shortcut
    in front of the batch norm), or where either of the two is called more than once.
    """
    uses = _Uses()
    calls: Counter[str] = Counter()
    taken: dict[int, str] = {}

    def make(name: str, output: Tensor) -> None:
        calls[name] += 1
        uses.watch(name, output)

    def take(name: str, source: Tensor) -> None:
        calls[name] += 1
        if id(source) in uses.count:
            taken[id(source)] = name

    hooks = []
    for name, module in model.named_modules():
        if repairable(module):
            hooks.append(module.register_forward_hook(lambda _m, _i, out, name=name: make(name, out)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(lambda _m, inputs, name=name: take(name, inputs[0])))
    try:
        with torch.inference_mode(), uses:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        (name, taken[id(output)]) for name, output in uses.made if id(output) in taken and uses.count[id(output)] == 1
    ]
    return {name: norm for name, norm in pairs if calls[name] == calls[norm] == 1}


def shift_output(model: nn.Module, name: str, norm: str | None, shift: Tensor) -> None:
    """Add a constant per channel behind a consumer: to its bias, or in front of the batch norm that follows."""
    module = model.get_submodule(name)
    if isinstance(module.bias, Tensor):
        module.bias.data = module.bias.data + shift.to(module.bias.dtype)
    elif norm is not None:
        running_mean = model.get_submodule(norm).running_mean
        assert isinstance(running_mean, Tensor)
        running_mean.sub_(shift.to(running_mean.dtype))


@dataclass(frozen=True)
class DenseMoments:
    """Second moments of every consumer's input in the dense network, collected in one pass.

    Attributes:
        inputs: consumer's name → moments of its unfolded input.
        norms: consumer's name → the batch norm behind it.
    """

    inputs: Mapping[str, Moments]
    norms: Mapping[str, str]

    def has_intercept(self, model: nn.Module, name: str) -> bool:
        """Whether a constant can be absorbed behind the consumer."""
        return model.get_submodule(name).bias is not None or name in self.norms

    def gram(self, model: nn.Module, name: str) -> Tensor:
        """(groups, p, p) per-sample Gram matrix of a consumer, centred where an intercept absorbs the mean."""
        moments = self.inputs[name]
        return moments.centered()[2] if self.has_intercept(model, name) else moments.raw()[0]


def collect_moments(model: nn.Module, structure: Structure, batches: Batches) -> DenseMoments:
    """`collect_inputs`, and the batch norms behind."""
    return DenseMoments(collect_inputs(model, structure, batches), following_norms(model, batches[0][0][:1]))


def collect_inputs(model: nn.Module, structure: Structure, batches: Batches) -> dict[str, Moments]:
    """Consumer's name → moments of its unfolded input: one pass of the calibration images through the dense network.

    Args:
        model: in eval mode.
        structure: its layers; moments are collected for their consumers.
        batches: calibration images, (N, C, H, W) and labels.
    """
    names = {part.module for layer in structure.layers for part in layer.weights("in")}
    inputs: dict[str, Moments] = {}
    hooks = []
    for name in sorted(names):
        module = model.get_submodule(name)
        if repairable(module):
            moments, sampler = Moments(), Sampler(module)
            inputs[name] = moments
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _module, args, moments=moments, sampler=sampler: moments.add(sampler.inputs(args[0]))
                )
            )
    try:
        with torch.inference_mode():
            for images, _ in batches:
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def repair_from_moments(
    pruned: nn.Module, dense: nn.Module, structure: Structure, selection: Selection, moments: DenseMoments
) -> None:
    """Least squares on the dense network's Gram matrices: no images needed, milliseconds a network.

    Args:
        pruned: what `shrink` returned for this selection; its consumers' weights are replaced.
        dense: the network it was cut from.
        structure: the dense network's layers.
        selection: for every layer the units that stay.
        moments: of the dense network.
    """
    kept = structure.kept_positions(selection)
    for name, stats in moments.inputs.items():
        weight_name = f"{name}.weight"
        inputs = kept.get((weight_name, 1))
        if inputs is None:
            continue
        module = pruned.get_submodule(name)
        full = dense.get_parameter(weight_name).detach()
        outputs = kept.get((weight_name, 0))
        if outputs is not None:
            full = full[torch.from_numpy(outputs).to(full.device)]
        system = _System.of(dense, name, full, inputs, moments)
        weight, stay = system.weight, system.stay
        fitted = weight[:, :, stay] + system.step(damping(stats.count, int(stay.sum())))
        sampler = Sampler(module)
        parameter = pruned.get_parameter(weight_name)
        parameter.data = sampler.unweight(fitted, parameter)
        if moments.has_intercept(dense, name):
            mean = stats.mean.unsqueeze(2)
            shift = (weight @ mean - fitted @ mean[:, stay]).flatten()
            shift_output(pruned, name, moments.norms.get(name), shift)


def repair_error(
    dense: nn.Module,
    structure: Structure,
    index: int,
    order: NDArray[np.int64],
    sparsity: float,
    moments: DenseMoments,
) -> float:
    """How much of its consumers' output a layer loses at a sparsity, after least squares: 1 − R², in [0, 1].

    Args:
        dense: the network.
        structure: its layers.
        index: of the layer in the walk; the others stay whole.
        order: its units from the most to the least important.
        sparsity: fraction removed.
        moments: of the dense network.
    """
    layer = structure.layers[index]
    kept = structure.kept_positions(structure.cut_alone(index, order, sparsity))
    lost = total = 0.0
    for part in layer.weights("in"):
        inputs = kept.get((part.parameter, 1))
        if inputs is None or part.module not in moments.inputs:
            continue
        system = _System.of(dense, part.module, dense.get_parameter(part.parameter).detach(), inputs, moments)
        lost += system.error(system.step(RIDGE))
        total += system.total
    return min(1.0, max(0.0, lost / total)) if total > 0.0 else 0.0


@dataclass(frozen=True)
class _System:
    """The normal equations of one consumer with part of its inputs gone.

    Attributes:
        weight: (groups, q, p) dense.
        gram: (groups, p, p).
        stay: (p,) which columns survive.
    """

    weight: Tensor
    gram: Tensor
    stay: Tensor

    @classmethod
    def of(
        cls, dense: nn.Module, name: str, weight: Tensor, inputs: NDArray[np.int64], moments: DenseMoments
    ) -> _System:
        matrix = Sampler(dense.get_submodule(name)).weight(weight)
        keep = torch.zeros(weight.shape[1], dtype=torch.bool)
        keep[torch.from_numpy(inputs)] = True
        stay = keep.repeat(matrix.shape[2] // len(keep)).to(weight.device)  # kernel positions outside, channels inside
        return cls(matrix, moments.gram(dense, name), stay)

    def step(self, ridge: float) -> Tensor:
        """(groups, q, kept) what least squares adds to the surviving weights."""
        gone = ~self.stay
        missing = self.gram[:, self.stay][:, :, gone] @ self.weight[:, :, gone].transpose(1, 2)
        return ridge_step(self.gram[:, self.stay][:, :, self.stay], missing, ridge).transpose(1, 2)

    @property
    def total(self) -> float:
        """Variance of the dense output, summed over channels."""
        return float(torch.einsum("gqp,gpr,gqr->", self.weight, self.gram, self.weight))

    def error(self, step: Tensor) -> float:
        """Variance of what the surviving, stepped weights still miss."""
        missed = torch.where(self.stay, 0.0, self.weight)
        missed[:, :, self.stay] = -step
        return float(torch.einsum("gqp,gpr,gqr->", missed, self.gram, missed))
