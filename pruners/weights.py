"""The method `weights`: a layer is a weight tensor, a unit one weight; what goes becomes a zero.

Fewer numbers are stored and, in theory, multiplied; a dense kernel multiplies the zeros all the same, so that the
network is no faster. Channels are for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..configs import Registry
from ..configs.schema import LayersConfig
from ..networks.checks import check_weights
from ..networks.copying import copied, rebuilt
from ..networks.inference import example_images
from ..networks.norms import CONVOLUTIONS
from ..networks.world import undisturbed
from ..storage.reading import shown
from ..training.inputs import InputShape, as_shape
from .context import Context
from .costs.counts import LinearCost, count_operations, uncounted_flops
from .masks import Masked
from .method import METHODS, Compressed
from .repair.gram import variance
from .repair.solve import RIDGE, damped_inverse, masked_ridge_step
from .repair.statistics import Sampler
from .scope import ignored_names, no_branches, no_grids, step_of
from .structure import Floats, Kept, Layer, PlanError, Structure

CURVE_POINTS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # fractions kept

Masks = dict[str, Tensor]

CRITERIA: Registry[Callable[[Context, Layer], Tensor]] = Registry(
    "criterion of weights", adopt=lambda _name, score, _known: score
)


@CRITERIA.register("magnitude")
def magnitude(context: Context, layer: Layer) -> Tensor:
    """|w|, of the tensor's shape."""
    return context.model.get_parameter(layer.name).detach().abs()


@CRITERIA.register("obs")
def obs(context: Context, layer: Layer) -> Tensor:
    """w² / [H⁻¹]ⱼⱼ, of the tensor's shape (Hassibi & Stork, NeurIPS 1992, eq. 5), H the damped second moments of the
    inputs: what the output loses where this weight alone goes and the rest of its row is re-fitted. Magnitude where
    the inputs' moments are not known."""
    scores = torch.zeros_like(weight := context.model.get_parameter(layer.name).detach(), dtype=torch.float64)
    for name in layer.consumers:
        if name not in context.moments.inputs:
            return magnitude(context, layer)
        sampler = Sampler(context.model.get_submodule(name))
        inverse, _ = damped_inverse(context.moments.gram(context.model, name))
        saliency = sampler.weight(weight).square() / inverse.diagonal(dim1=1, dim2=2).unsqueeze(1)
        scores += sampler.unweight(saliency, scores)
    return scores


@dataclass(frozen=True, kw_only=True)
class WeightLayer(Layer):
    """A weight tensor.

    Attributes:
        two_of_four: whether its half, if it is kept, is the two best of every four inputs in a row.
    """

    two_of_four: bool = False


class Weights:
    """Magnitude pruning with repair: least squares on the kept weights of each row (see `masked_ridge_step`)."""

    name = "weights"
    unit = "weights"
    criterion = "magnitude"
    max_sparsity = 0.99

    @undisturbed()
    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> Structure:
        """The weight tensors of convolutions and linear layers; biases and norms stay. Tied weights are one tensor.

        Choices are per cents of a tensor (multiples of `round_to` weights); with `pattern: "2:4"`, half or all.

        Raises:
            ValueError: the network does not run on such an image, or returns no row for each.
            PlanError: no weight is left to prune, or the config names an unknown one.
        """
        no_branches(config, self.name)
        if config.tie:
            raise PlanError("layers.tie: weight tensors are not tied; leave it out with method: weights")
        no_grids(config, self.name)
        check_weights(model)
        model = copied(model).eval()
        example = example_images(model, input_shape)
        operations = count_operations(model, example)
        users = _users(model)
        ignored = dict.fromkeys(
            sorted(ignored_names(model, {name: [name, *modules] for name, modules in users.items()}, config.ignore)),
            "excluded by the config",
        )
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        layers = []
        for name, modules in users.items():
            units = int(np.prod(shapes[name]))
            if config.pattern is not None and int(np.prod(shapes[name][1:])) % 4:
                ignored.setdefault(name, f"the {shapes[name][1:]} inputs of a row do not divide into groups of four")
            if name in ignored:
                continue
            choices = (units // 2, units) if config.pattern else _per_cents(units, step_of(name, config.round_to))
            layers.append(
                WeightLayer(
                    name,
                    units,
                    choices,
                    parameters=(name,),
                    consumers=tuple(modules),
                    two_of_four=config.pattern == "2:4",
                )
            )
        if not layers:
            raise PlanError("no weight to prune: no convolution or linear layer is left")
        positions = {op.module: op.positions for op in operations}
        factors = np.array([sum(positions.get(m, 0) for m in layer.consumers) for layer in layers], dtype=np.int64)
        sizes = np.array([layer.units for layer in layers], dtype=np.int64)
        macs = sum(op.flops for op in operations) + uncounted_flops(model, example, operations)
        params = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
        return Structure(
            method=self.name,
            layers=tuple(layers),
            costs={
                "flops": LinearCost(factors, macs - int(factors @ sizes)),
                "params": LinearCost(np.ones_like(sizes), params - int(sizes.sum())),
            },
            ignored=ignored,
            shapes=shapes,
            input_shape=as_shape(input_shape),
        )

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where there is no such criterion."""
        _ = CRITERIA[name]

    def curves(self, context: Context) -> list[Floats]:
        """By magnitude, each row re-fitted; measured at `CURVE_POINTS`, straight between them; computed once."""

        def measure() -> dict[str, Tensor]:
            return {layer.name: torch.from_numpy(_curve(context, layer)) for layer in context.structure.layers}

        found = context.store.get("weights-curves", measure)
        return [found[layer.name].numpy() for layer in context.structure.layers]

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """w²."""
        weight = context.model.get_parameter(layer.name).detach().double()
        return np.asarray(weight.square().flatten().cpu().numpy())

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the first module that uses the tensor."""
        shape = context.structure.shapes[layer.parameters[0]]
        module: Any = context.model.get_submodule(layer.consumers[0])
        macs = context.structure.costs["flops"]
        positions = macs.factors[context.structure.index(layer.name)] if isinstance(macs, LinearCost) else 1
        return {
            "linear": float(isinstance(module, nn.Linear)),
            "inputs": float(shape[1]),
            "consumers": float(shape[0]),
            "resolution": float(positions),
            "stride": 1.0 if isinstance(module, nn.Linear) else float(module.stride[0]),
            "kernel": float(shape[-1] if len(shape) > 2 else 1),
        }

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """The highest-ranking weights of every tensor; the others are zero."""
        masks = self.masks(context, kept)
        model = rebuilt(context.model, lambda name, t: t * masks[name] if name in masks else t).eval()
        by_module = {
            module: Sampler(context.model.get_submodule(module)).weight(masks[layer.name]) > 0
            for layer in context.structure.layers
            if layer.name in masks
            for module in layer.consumers
        }
        return Compressed(
            model=model,
            recipe={"masked": sorted(masks)},
            cut=frozenset(by_module),
            solve=RowSolve(by_module),
            hold=Masked(masks),
        )

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """What `apply` makes is its own oracle: the weights are set in another way."""
        model = copied(context.model)
        Masked(self.masks(context, kept))(model)
        return model

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """The architecture itself: zeros are among the saved weights."""
        masked = recipe.get("masked")
        if not isinstance(masked, list) or not all(isinstance(name, str) for name in masked):
            raise ValueError("this is no recipe of pruned weights (masked is no list of names)")
        names = {name for name, _ in model.named_parameters()}
        if odd := [name for name in masked if name not in names or masked.count(name) > 1]:
            raise ValueError(f"the recipe masks {shown(odd[0])}: {'twice' if odd[0] in names else 'no such weights'}")
        return model

    def masks(self, context: Context, kept: Kept) -> Masks:
        """Parameter name → float tensor of its shape, 1 for what is kept, where something goes; ties keep the first."""
        orders: dict[str, Tensor] = context.memo.setdefault(f"weights-{context.ranking_criterion}", {})
        found: Masks = {}
        for layer, count in zip(context.structure.layers, kept, strict=True):
            if count == layer.units:
                continue
            if layer.name not in orders:
                scores = CRITERIA[context.ranking_criterion](context, layer)
                patterned = isinstance(layer, WeightLayer) and layer.two_of_four
                half = _two_of_four(scores) if patterned else scores.flatten()
                orders[layer.name] = half.argsort(descending=True, stable=True)
            order = orders[layer.name]
            parameter = context.model.get_parameter(layer.name)
            mask = torch.zeros(layer.units, dtype=parameter.dtype, device=parameter.device)
            mask[order[: int(count)]] = 1.0
            found[layer.name] = mask.reshape(parameter.shape)
        return found


@dataclass(frozen=True)
class RowSolve:
    """Least squares on the weights that each row keeps; see `Solve`.

    A repair's ridge is meant for all inputs of a layer (`damping`); a row that has fewer is fitted to as many samples,
    and is damped by as much less.

    Attributes:
        keep: module → (groups, q, p) bool, which weights stay.
    """

    keep: Mapping[str, Tensor]

    def __call__(self, name: str, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """(groups, p, q) the step."""
        keep = self.keep[name]
        return masked_ridge_step(gram, cross, max(RIDGE, ridge * float(keep.double().mean())), keep)


def _users(model: nn.Module) -> dict[str, list[str]]:
    """Weight tensor → the modules that use it, in the order of the network."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users: dict[str, list[str]] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and id(module.weight) in names:
            users.setdefault(names[id(module.weight)], []).append(module_name)
    return users


def _per_cents(units: int, step: int) -> tuple[int, ...]:
    counts = {min(units, step * -(-max(1, round(units * per_cent / 100)) // step)) for per_cent in range(1, 101)}
    return tuple(sorted(counts | {units}))


def _two_of_four(scores: Tensor) -> Tensor:
    """(weights,) scores with those of the two best of every four in a row lifted above all others."""
    rows = scores.reshape(len(scores), -1, 4)
    best = torch.zeros_like(rows, dtype=torch.bool).scatter_(2, rows.topk(2, dim=2).indices, True)
    lifted: Tensor = rows / rows.max().clamp_min(torch.finfo(rows.dtype).tiny) + 2.0 * best
    return lifted.flatten()


def _curve(context: Context, layer: Layer) -> Floats:
    """(choices,) 1 − R² of the outputs, the mean over the modules that use the tensor."""
    weight = context.model.get_parameter(layer.name).detach()
    order = magnitude(context, layer).flatten().argsort(descending=True, stable=True)
    picks = sorted({max(1, round(share * layer.units)) for share in CURVE_POINTS} - {layer.units})
    curves = []
    for name in layer.consumers:
        if name not in context.moments.inputs:
            continue
        sampler = Sampler(context.model.get_submodule(name))
        gram, matrix = context.moments.gram(context.model, name), sampler.weight(weight)
        total = variance(matrix, gram)
        if not total > 0.0:
            continue
        inverse, _ = damped_inverse(gram)
        errors = []
        for count in picks:
            mask = torch.zeros(layer.units, dtype=torch.float64, device=weight.device)
            mask[order[:count]] = 1.0
            keep = sampler.weight(mask.reshape(weight.shape)) > 0
            errors.append(_refitted_error(gram, inverse, matrix, keep) / total)
        curves.append(np.minimum.accumulate(np.clip([*errors, 0.0], 0.0, 1.0)))
    if not curves:  # nothing is known of the inputs: what is lost is the energy of the weights
        energy = weight.double().square().flatten()[order].cumsum(0).cpu().numpy()
        curves = [1.0 - np.array([*(energy[n - 1] for n in picks), energy[-1]]) / max(energy[-1], 1e-300)]
    return np.asarray(np.interp(layer.levels, [*picks, layer.units], np.mean(curves, axis=0)))


def _refitted_error(gram: Tensor, inverse: Tensor, matrix: Tensor, keep: Tensor) -> float:
    """Variance of the output that is missed once every row's kept weights are re-fitted, by the smaller of two systems.

    With few weights gone, R, it is tr(w_R ([H⁻¹]_RR)⁻¹ w_Rᵀ), H = G + λI; with few left, what their fit leaves.
    """
    if keep.double().mean() > 0.5:
        gone = torch.where(keep, 0.0, matrix).transpose(1, 2)
        solved = masked_ridge_step(inverse, gone, 0.0, ~keep)
        return float((gone * solved).sum())
    left = torch.where(keep, matrix, 0.0)
    step = masked_ridge_step(gram, gram @ (matrix - left).transpose(1, 2), RIDGE, keep)
    return variance(matrix - left - step.transpose(1, 2), gram)


METHODS.register("weights")(Weights())
