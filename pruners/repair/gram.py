"""Repair the surviving weights by least squares on the dense network's own moments.

Channel pruning (He, Zhang, Sun, ICCV 2017, eq. 1 with β fixed): of a consumer with unfolded inputs X and dense
weights W, the inputs S survive. Fitted is min ‖T − X_S V − b‖² + λ‖V − W_S‖², towards the target T = X W + b₀ of the
dense network. Everything that needs images is the second moments of X, collected once; after that any S is one
small linear system. The intercept goes into the bias, or into the running mean of the batch norm behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...networks.factors import set_weight
from ...networks.inference import Batches
from ...networks.norms import following_norms, shift_output
from ...training.inputs import call, taken
from ..method import Compressed
from .solve import damping, ridge_step
from .statistics import Moments, Sampler, repairable


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


def collect_moments(model: nn.Module, names: Collection[str], batches: Batches) -> DenseMoments:
    """`collect_inputs`, and the batch norms behind."""
    return DenseMoments(collect_inputs(model, names, batches), following_norms(model, taken(batches[0][0], slice(1))))


def collect_inputs(model: nn.Module, names: Collection[str], batches: Batches) -> dict[str, Moments]:
    """Consumer's name → moments of its unfolded input: one pass of the calibration images through the dense network.

    Args:
        model: in eval mode.
        names: of the modules; those that least squares cannot re-fit are passed over.
        batches: calibration images, (N, C, H, W) and labels.
    """
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
        with torch.no_grad():
            for images, _ in batches:
                call(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def repair_from_moments(compressed: Compressed, dense: nn.Module, moments: DenseMoments) -> None:
    """Least squares on the dense network's Gram matrices: no images needed, milliseconds a network.

    Args:
        compressed: its model's weights are replaced.
        dense: the network it was made from.
        moments: of the dense network.
    """
    for name in [name for name in moments.inputs if name in compressed.cut]:  # the others' are not even read
        stats = moments.inputs[name]
        whole, left, stay = aligned_weights(compressed, dense, name)
        alive = groups_left(compressed, dense, name)
        gram = moments.gram(dense, name)[alive]
        cross = gram[:, stay] @ (whole - left).transpose(1, 2)
        ridge = damping(stats.count, int(stay.sum()))
        inner = gram[:, stay][:, :, stay]
        step = compressed.solve(name, inner, cross, ridge) if compressed.solve else ridge_step(inner, cross, ridge)
        fitted = left[:, :, stay] + step.transpose(1, 2)
        module: Any = compressed.model.get_submodule(name)
        set_weight(module, Sampler(module).unweight(fitted, module.weight))
        if moments.has_intercept(dense, name):
            mean = stats.mean[alive].unsqueeze(2)
            shift = (whole @ mean - fitted @ mean[:, stay]).flatten()
            there = _constant(compressed.model, name, moments) - _constant(dense, name, moments, compressed.rows)
            shift_output(compressed.model, name, moments.norms.get(name), shift - there)


class NarrowedMoments(Mapping[str, Moments]):
    """Moments of the inputs that are left, as the dense network has them: for a method that comes after another.

    Each is made when it is looked at.

    Args:
        whole: of the dense network.
        compressed: by the method before.
        dense: the network it was made from.
    """

    def __init__(self, whole: Mapping[str, Moments], compressed: Compressed, dense: nn.Module):
        self._whole, self._compressed, self._dense = whole, compressed, dense

    def __getitem__(self, name: str) -> Moments:
        stats, columns = self._whole[name], self._compressed.columns.get(name)
        channels = self._dense.get_parameter(f"{name}.weight").shape[1]
        stay = torch.arange(stats.mean.shape[1]).reshape(-1, channels)  # kernel positions outside, channels inside
        if columns is not None:
            stay = stay[:, torch.from_numpy(columns)]
        alive = groups_left(self._compressed, self._dense, name)
        return stats.narrowed(alive, stay.flatten().to(stats.mean.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def groups_left(compressed: Compressed, dense: nn.Module, name: str) -> Tensor:
    """(groups left,) of a consumer's groups: a depthwise convolution loses one with every output, or with several."""
    module: Any = dense.get_submodule(name)
    rows, groups = compressed.rows.get(name), Sampler(module).groups
    small: Any = compressed.model.get_submodule(name)
    if rows is None or Sampler(small).groups == groups:
        return torch.arange(groups, device=module.weight.device)
    left = np.unique(rows // (module.weight.shape[0] // groups))
    return torch.from_numpy(left).to(module.weight.device)


def aligned_weights(compressed: Compressed, dense: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A consumer's dense weights and what is left of them, side by side.

    Returns:
        The dense ones (groups, q, p), of the outputs that are left; the compressed ones in the same places, 0 where
        inputs are gone; and (p,) which columns survive.
    """
    small: Any = compressed.model.get_submodule(name)
    sampler = Sampler(small)
    full = dense.get_parameter(f"{name}.weight").detach()
    rows = compressed.rows.get(name)
    if rows is not None:
        full = full[torch.from_numpy(rows).to(full.device)]
    whole = sampler.weight(full)
    columns = compressed.columns.get(name)
    keep = torch.full((full.shape[1],), columns is None, dtype=torch.bool)
    if columns is not None:
        keep[torch.from_numpy(columns)] = True
    stay = keep.repeat(whole.shape[2] // len(keep)).to(full.device)  # kernel positions outside, channels inside
    left = torch.zeros_like(whole)
    left[:, :, stay] = sampler.weight(small.weight.detach())
    return whole, left, stay


def output_error(compressed: Compressed, dense: nn.Module, moments: DenseMoments) -> float:
    """How much of its consumers' output a compression loses, however it was repaired: 1 − R², the mean over consumers.

    Let W be a consumer's dense weights, V the compressed ones (0 where inputs are gone), and δ the difference of the
    constants behind them (bias, or the mean in the batch norm). An input x is missed by (W − V) x + δ, whose mean
    square is a quadratic form in the first two moments of x: exact, and no image is looked at again. R² is that of all
    output channels together: Σ of the squares missed over Σ of the dense output's variances.

    The moments say on which images: those of a repair's own images give what it has fitted, those of others what that
    is worth. On others it may exceed 1, and without a repair too. The surviving inputs are taken to be the dense
    network's: true where one layer is cut and none of its consumers sits behind another (in a trunk they do).

    Args:
        compressed: repaired or not.
        dense: the network it was made from.
        moments: of the dense network, on the images that tell.

    Returns:
        0 for a dense network.

    Raises:
        ValueError: units went, but no consumer's output can be told: none has moments, or none ever moves.
    """
    errors = []
    for name in [name for name in moments.inputs if name in compressed.cut]:  # the others' are not even read
        stats = moments.inputs[name]
        whole, left, _ = aligned_weights(compressed, dense, name)
        missed = whole - left
        shift = _constant(dense, name, moments, compressed.rows) - _constant(compressed.model, name, moments)
        shift = shift.reshape(missed.shape[:2])
        alive, (mean, _, covariance, _) = groups_left(compressed, dense, name), stats.centered()
        mean, covariance = mean[alive], covariance[alive]
        total = variance(whole, covariance)
        if total > 0.0:
            offset = torch.einsum("gqp,gp->gq", missed, mean) + shift
            errors.append((variance(missed, covariance) + float(offset.square().sum())) / total)
    if compressed.cut and not errors:
        raise ValueError(
            f"no output that could be measured at {', '.join(sorted(compressed.cut))}: choose another layer"
        )
    return sum(errors) / len(errors) if errors else 0.0


def variance(weight: Tensor, covariance: Tensor) -> float:
    """Σ over outputs of wᵀ C w: weight (groups, q, p), covariance (groups, p, p)."""
    return float(torch.einsum("gqp,gpr,gqr->", weight, covariance, weight))


def _constant(
    model: nn.Module, name: str, moments: DenseMoments, rows: Mapping[str, NDArray[np.int64]] | None = None
) -> Tensor:
    """(outputs,) what is added behind a consumer before anything else happens: its bias, less the batch norm's mean.

    Of the outputs that are left, where `rows` says so.
    """
    module: Any = model.get_submodule(name)
    weight = module.weight
    constant = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if isinstance(module.bias, Tensor):
        constant = constant + module.bias.detach()
    if name in moments.norms:
        mean = model.get_submodule(moments.norms[name]).running_mean
        assert isinstance(mean, Tensor)
        constant = constant - mean
    left = None if rows is None else rows.get(name)
    return constant if left is None else constant[torch.from_numpy(left).to(constant.device)]
