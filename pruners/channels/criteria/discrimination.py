"""Discrimination-aware channel selection (Zhuang et al., NeurIPS 2018, "DCP", algorithm 2).

Greedy, from nothing: the unit whose weights in the consumers have the largest gradient ‖∂L/∂W_j‖_F joins, what has
joined is re-fitted, and so on. L is the reconstruction error of the consumers' outputs plus λ times a loss that tells
the classes apart. The paper trains extra classifiers along the network for the latter and re-fits by gradient steps;
here the network's own outputs say it, by the objective's loss, and the re-fit is least squares on the dense network's
moments.

A round costs a forward and a backward pass of `IMAGES` images. Layers wider than `ROUNDS` take in ⌈w / ROUNDS⌉ units a
round.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from ....networks.inference import first_images
from ....networks.norms import CONVOLUTIONS
from ....training.inputs import joined, mapped
from ...context import Context
from ...repair.solve import ridge_step
from ...repair.statistics import Sampler
from ..slices import ChannelLayer
from .registry import Order, Scores, register_criterion
from .regressions import Regression, consumer_positions, regressions

IMAGES = 100  # calibration images that tell the classes apart
ROUNDS = 16  # how often gradients are taken anew in a layer
DISCRIMINATION = 1.0  # λ: the objective's loss (mean) against the reconstruction error (½, of the output's variance)


@register_criterion("dcp")
def dcp(context: Context, layer: ChannelLayer) -> Order:
    """Units in the order in which they join; see the module."""
    return join(context, layer, images=IMAGES, rounds=ROUNDS, discrimination=DISCRIMINATION)


def join(context: Context, layer: ChannelLayer, *, images: int, rounds: int | None, discrimination: float) -> Order:
    """Units from the first to the last that joined.

    Args:
        context: the network, its moments, and images that tell the classes apart.
        layer: whose units join; the others are whole.
        images: how many calibration images.
        rounds: how often gradients are taken anew, at most; none for after every unit.
        discrimination: weight λ of the objective's loss.
    """
    at_once = 1 if rounds is None else -(-layer.units // rounds)
    problems = {found.name: found for found in regressions(context, layer)}
    chosen: list[int] = []
    while len(chosen) < layer.units:
        gradients = gradient_norms(context, layer, chosen, problems, images, discrimination)
        gradients[chosen] = -np.inf
        best = np.argsort(-gradients, kind="stable")[: min(at_once, layer.units - len(chosen))]
        chosen += best.tolist()
    return np.array(chosen, dtype=np.int64)


def gradient_norms(
    context: Context,
    layer: ChannelLayer,
    chosen: list[int],
    problems: dict[str, Regression],
    images: int,
    discrimination: float,
) -> Scores:
    """(units,) ‖∂L/∂W_j‖_F over all consumers that are convolutions or linear layers.

    The chosen units are re-fitted, the others at 0.
    """
    gone = np.setdiff1d(np.arange(layer.units), chosen)
    replaced: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    consumers = {
        name: positions
        for name, positions in consumer_positions(layer).items()
        if isinstance(context.model.get_submodule(name), (*CONVOLUTIONS, nn.Linear))
    }
    for name, positions in consumers.items():
        parameter = context.model.get_parameter(f"{name}.weight").detach()
        if name in problems:
            fitted, slope = _refit(problems[name], gone)
            sampler = Sampler(context.model.get_submodule(name))
            gradients[name] = sampler.unweight(slope, parameter.double())
            replaced |= _shifted(context, name, problems[name].weight, fitted)
            weight = sampler.unweight(fitted, parameter)
        else:
            gradients[name] = torch.zeros_like(parameter, dtype=torch.float64)
            weight = parameter.index_fill(1, torch.from_numpy(positions[gone].ravel()).to(parameter.device), 0.0)
        replaced[f"{name}.weight"] = weight
    if discrimination and consumers:
        for name, slope in _slopes(context, replaced, list(gradients), images).items():
            gradients[name] = gradients[name] + discrimination * slope
    squares = np.zeros(layer.units)
    for name, positions in consumers.items():
        inputs = gradients[name].square().transpose(0, 1).flatten(1).sum(1).cpu().numpy()
        squares += inputs[positions].sum(1)
    return np.asarray(np.sqrt(squares), dtype=np.float64)


def _refit(problem: Regression, gone: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Least squares without some units: the weights (groups, q, p), and the gradient of ½‖Y − X V‖² / ‖Y‖² there."""
    stay = torch.ones(problem.weight.shape[2], dtype=torch.bool, device=problem.weight.device)
    stay[problem.columns[torch.from_numpy(gone).to(stay.device)].ravel()] = False
    fitted = torch.where(stay, problem.weight, 0.0)
    if bool(stay.any()):
        rows = problem.gram[:, stay]
        missing = rows[:, :, ~stay] @ problem.weight[:, :, ~stay].transpose(1, 2)
        fitted[:, :, stay] += ridge_step(rows[:, :, stay], missing).transpose(1, 2)
    return fitted, (fitted - problem.weight) @ problem.gram


def _shifted(context: Context, name: str, weight: Tensor, fitted: Tensor) -> dict[str, Tensor]:
    """What takes up the constant that the re-fitted consumer lacks: its bias, or the mean of the batch norm behind."""
    if not context.moments.has_intercept(context.model, name):
        return {}
    shift = ((weight - fitted) @ context.moments.inputs[name].mean.unsqueeze(2)).flatten()
    bias = context.model.get_submodule(name).bias
    if isinstance(bias, Tensor):
        return {f"{name}.bias": (bias.detach() + shift).to(bias.dtype)}
    norm = f"{context.moments.norms[name]}.running_mean"
    mean = context.model.get_buffer(norm)
    return {norm: (mean - shift).to(mean.dtype)}


def _slopes(context: Context, replaced: dict[str, Tensor], names: list[str], count: int) -> dict[str, Tensor]:
    """Consumer → the gradient of the objective's loss by its weight, double, with some tensors replaced."""
    images, targets = joined(first_images(context.calibration, count))
    with torch.enable_grad():
        weights = [replaced[f"{name}.weight"].detach().requires_grad_() for name in names]
        given = replaced | {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
        images = mapped(torch.clone, images)
        named = images if isinstance(images, dict) else {}
        unnamed = () if named else images if isinstance(images, tuple) else (images,)
        outputs = functional_call(context.model, given, unnamed, named)
        slopes = torch.autograd.grad(context.objective.loss(outputs, targets), weights, allow_unused=True)
    return {name: slope.double() for name, slope in zip(names, slopes, strict=True) if slope is not None}
