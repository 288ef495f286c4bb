"""What the network loses where one layer alone is cut, on images that took no part in the repair.

The measure behind channel pruning's first figure (He, Zhang, Sun, ICCV 2017, fig. 4, single layers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Layer, Selection, Structure
from .reconstruction import DenseMoments, Sampler


def spread_layers(structure: Structure, count: int) -> list[Layer]:
    """At most `count` layers spread over the depth: the middle ones of as many equal stretches of the walk."""
    total = len(structure.layers)
    return [structure.layers[i] for i in sorted({(2 * k + 1) * total // (2 * count) for k in range(count)})]


def output_error(
    pruned: nn.Module, dense: nn.Module, structure: Structure, selection: Selection, moments: DenseMoments
) -> float:
    """How much of its consumers' output a cut loses, however it was repaired: 1 − R², the mean over consumers.

    Let W be a consumer's dense weights, V the pruned ones (0 where inputs are gone), and δ the difference of the
    constants behind them (bias, or the mean in the batch norm). An input x is missed by (W − V) x + δ, whose mean
    square is a quadratic form in the first two moments of x: exact, and no image is looked at again. R² is that of all
    output channels together: Σ of the squares missed over Σ of the dense output's variances.

    The moments say on which images: those of a repair's own images give what it has fitted, those of others what that
    is worth. On others it may exceed 1, and without a repair too. The surviving inputs are taken to be the dense
    network's: true where one layer is cut and none of its consumers sits behind another (in a trunk they do).

    Args:
        pruned: what `shrink` returned for this selection, repaired or not.
        dense: the network it was cut from.
        structure: its layers.
        selection: for every layer the units that stay.
        moments: of the dense network, on the images that judge.

    Returns:
        0 for a dense network.

    Raises:
        ValueError: units went, but no consumer's output can be told: none has moments, or none ever moves.
    """
    kept = structure.kept_positions(selection)
    errors = []
    for name, stats in moments.inputs.items():
        inputs, outputs = kept.get((f"{name}.weight", 1)), kept.get((f"{name}.weight", 0))
        if inputs is None:
            continue
        sampler = Sampler(pruned.get_submodule(name))
        full = dense.get_parameter(f"{name}.weight").detach()
        shift = _constant(dense, name, moments)
        if outputs is not None:
            rows = torch.from_numpy(outputs).to(full.device)
            full, shift = full[rows], shift[rows]
        left = torch.zeros_like(full)
        left[:, torch.from_numpy(inputs).to(full.device)] = pruned.get_parameter(f"{name}.weight").detach()
        weight = sampler.weight(full)
        missed = weight - sampler.weight(left)
        shift = (shift - _constant(pruned, name, moments)).reshape(missed.shape[:2])
        mean, _, covariance, _ = stats.centered()
        total = _variance(weight, covariance)
        if total > 0.0:
            offset = torch.einsum("gqp,gp->gq", missed, mean) + shift
            errors.append((_variance(missed, covariance) + float(offset.square().sum())) / total)
    if kept and not errors:
        cut = [layer.name for layer, keep in zip(structure.layers, selection, strict=True) if len(keep) < layer.width]
        raise ValueError(f"layer {', '.join(cut)}: no consumer's output that could be measured; choose another layer")
    return sum(errors) / len(errors) if errors else 0.0


def _variance(weight: Tensor, covariance: Tensor) -> float:
    return float(torch.einsum("gqp,gpr,gqr->", weight, covariance, weight))


def _constant(model: nn.Module, name: str, moments: DenseMoments) -> Tensor:
    """(outputs,) what is added behind a consumer before anything else happens: its bias, less the batch norm's mean."""
    module = model.get_submodule(name)
    weight = model.get_parameter(f"{name}.weight")
    constant = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if isinstance(module.bias, Tensor):
        constant = constant + module.bias.detach()
    if name in moments.norms:
        mean = model.get_submodule(moments.norms[name]).running_mean
        assert isinstance(mean, Tensor)
        constant = constant - mean
    return constant
