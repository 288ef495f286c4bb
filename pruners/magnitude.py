"""Prune single weights by magnitude, at once or gradually: they become zeros, and the network keeps its shape.

Fewer numbers are stored and, in theory, multiplied; a dense kernel multiplies the zeros all the same, so that the
network is no faster. Channels are for that.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..configs import did_you_mean
from .coupling import count_operations, example_images
from .layers import CONVOLUTIONS, Layer, Operation, PlanError, WeightStructure

Scope = Literal["layer", "global"]
Sparsity = float | Mapping[str, float]
Masks = dict[str, Tensor]


def find_weights(model: nn.Module, input_shape: Sequence[int], *, exclude: Collection[str] = ()) -> WeightStructure:
    """The weight tensors of convolutions and linear layers; biases and norms stay. Tied weights are one tensor.

    Args:
        model: any network; left as it was.
        input_shape: (C, H, W) of one image.
        exclude: tensors to leave dense, by parameter (`fc.weight`) or module (`fc`).

    Raises:
        ValueError: the network does not run on such an image, or returns no single tensor.
        PlanError: no weight is left to prune, or `exclude` names an unknown one.
    """
    still = copy.deepcopy(model).eval()  # counting must not touch batch-norm statistics
    operations = count_operations(still, example_images(still, input_shape))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users: dict[str, list[str]] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and id(module.weight) in names:
            users.setdefault(names[id(module.weight)], []).append(module_name)
    known = {alias: name for name, modules in users.items() for alias in (name, *modules)}
    for name in exclude:
        if name not in known:
            raise PlanError(f"layers.exclude names {name!r}, which is no weight here{did_you_mean(name, known)}")
    dense = {known[name] for name in exclude}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layers = tuple(Layer(name, int(np.prod(shapes[name])), ()) for name in users if name not in dense)
    if not layers:
        raise PlanError("no weight to prune: no convolution or linear layer is left")
    return WeightStructure(
        layers=layers,
        uncut=dict.fromkeys(sorted(dense), "excluded by the config"),
        operations=_merged(operations, {module: modules[0] for modules in users.values() for module in modules}),
        shapes=shapes,
        input_shape=tuple(input_shape),
    )


def _merged(operations: Sequence[Operation], first: Mapping[str, str]) -> tuple[Operation, ...]:
    """One operation a weight, under its first user's name: where it is shared, the positions add up."""
    merged: dict[str, Operation] = {}
    for op in operations:
        name = first.get(op.module, op.module)
        before = merged[name].positions if name in merged else 0
        merged[name] = replace(op, module=name, positions=op.positions + before)
    return tuple(merged.values())


def weight_widths(
    model: nn.Module,
    structure: WeightStructure,
    sparsity: Sparsity,
    scope: str = "layer",
    masks: Mapping[str, Tensor] | None = None,
) -> NDArray[np.int64]:
    """(tensors,) weights kept: round(sparsity · n) of n go, but a tensor keeps at least one.

    Args:
        model: the network; only `global` looks at its weights.
        structure: its weights.
        sparsity: the fraction removed, in [0, 1); with `layer` also one a tensor, by name, 0 for those not named.
        scope: `layer`, every tensor by itself; `global`, the smallest of all go, wherever they are.
        masks: of an earlier pruning; what was removed goes first.

    Raises:
        ValueError: a scope or tensor that there is not, a sparsity out of range.
    """
    dense = structure.widths
    if check_scope(scope) == "layer":
        each = _sparsities(structure, sparsity)
        removed = [min(round(s * n), n - 1) for s, n in zip(each, dense.tolist(), strict=True)]
        return dense - np.array(removed, dtype=np.int64)
    if isinstance(sparsity, Mapping):
        raise ValueError("one sparsity a tensor, and one threshold for all: with scope global give a single sparsity")
    check_sparsity(sparsity)
    tensors = _magnitudes(model, structure, masks)
    for tensor in tensors:
        tensor[tensor.argmax()] = torch.inf
    total = int(dense.sum())
    gone = torch.cat(tensors).argsort(stable=True)[: min(round(sparsity * total), total - len(dense))]
    owners = np.searchsorted(np.cumsum(dense), gone.cpu().numpy(), side="right")
    return dense - np.bincount(owners, minlength=len(dense))


def magnitude_masks(
    model: nn.Module,
    structure: WeightStructure,
    widths: Sequence[int] | NDArray[np.int64],
    masks: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Parameter name → bool tensor of its shape, true for the weights of largest magnitude, `widths` (tensors,) many.

    Among equals the first go. What `masks` removed before goes first.
    """
    keep: Masks = {}
    tensors = _magnitudes(model, structure, masks)
    for layer, width, tensor in zip(structure.layers, structure.check_widths(widths), tensors, strict=True):
        mask = torch.ones_like(tensor, dtype=torch.bool)
        mask[tensor.argsort(stable=True)[: layer.width - int(width)]] = False
        keep[layer.name] = mask.reshape(structure.shapes[layer.name])
    return keep


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the removed weights in place."""
    for name, mask in masks.items():
        model.get_parameter(name).masked_fill_(~mask, 0.0)


def prune_weights(model: nn.Module, structure: WeightStructure, sparsity: Sparsity, scope: str = "layer") -> Masks:
    """Prune at once, in place; see `weight_widths`. The masks say what is left."""
    masks = magnitude_masks(model, structure, weight_widths(model, structure, sparsity, scope))
    apply_masks(model, masks)
    return masks


def kept_weights(structure: WeightStructure, masks: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """(tensors,) weights that the masks keep."""
    return np.array([int(masks[layer.name].sum()) for layer in structure.layers], dtype=np.int64)


@dataclass(frozen=True)
class CubicSchedule:
    """s_t = s_f + (s_i − s_f)(1 − (t − t₀)/(nΔt))³ for t in t₀, t₀ + Δt, … (Zhu & Gupta 2018, eq. 1), held between.

    Attributes:
        final: s_f.
        initial: s_i, also before the start.
        begin: t₀, a step.
        updates: n, how often the masks are renewed after t₀.
        every: Δt, steps between two renewals.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    updates: int = 100
    every: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final <= 1.0:
            raise ValueError(f"sparsity from {self.initial:g} to {self.final:g}: it must rise within 0 … 1")
        if self.begin < 0 or self.updates < 1 or self.every < 1:
            raise ValueError(
                f"begin = {self.begin}, updates = {self.updates}, every = {self.every}: "
                "give a begin of 0 or more, and 1 or more of the others"
            )

    @classmethod
    def over(cls, steps: int, ramp: float, every: int, final: float = 1.0) -> CubicSchedule:
        """From 0 at the start to `final` at (or up to Δt before) the part `ramp` of these steps."""
        end = max(1, int(ramp * steps))
        every = min(every, end)
        return cls(final, updates=end // every, every=every)

    @property
    def end(self) -> int:
        """The step from which the sparsity is final."""
        return self.begin + self.updates * self.every

    def sparsity(self, step: int) -> float:
        """After this step."""
        passed = min(max(step - self.begin, 0) // self.every, self.updates) / self.updates
        return self.final + (self.initial - self.final) * (1.0 - passed) ** 3

    def renews(self, step: int) -> bool:
        """Whether the masks are renewed after this step."""
        return self.begin <= step <= self.end and (step - self.begin) % self.every == 0


class GradualPruner:
    """Prunes a network while it trains: `fit(model, …, on_step=pruner.on_step)`, then `pruner.finish()`.

    The sparsity rises from 0 by the cubic schedule; after every step of the optimizer the removed weights are zeroed
    again, since momentum would bring them back.

    Attributes:
        masks: what is left, by parameter name.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: WeightStructure,
        sparsity: Sparsity,
        scope: str = "layer",
        *,
        ramp: float = 2 / 3,
        every: int = 100,
    ):
        """Prune nothing yet; the arguments are checked.

        Args:
            model: pruned in place.
            structure: its weights.
            sparsity: the final one; see `weight_widths`.
            scope: `layer` or `global`.
            ramp: the part of the training in which the sparsity rises, in (0, 1].
            every: steps between two renewals of the masks.
        """
        weight_widths(model, structure, sparsity, scope)
        if not 0.0 < ramp <= 1.0 or every < 1:
            raise ValueError(f"ramp = {ramp:g}, every = {every}: give a ramp in (0, 1], and 1 step or more")
        self._model, self._structure, self._sparsity, self._scope = model, structure, sparsity, scope
        self._ramp, self._every = ramp, every
        self.masks: Masks = magnitude_masks(model, structure, structure.widths)

    def on_step(self, step: int, total: int, _loss: float) -> None:
        """Called after every step of the optimizer, with the step from 1 and the steps in all."""
        schedule = CubicSchedule.over(total, self._ramp, self._every)
        if schedule.renews(step):
            self._renew(schedule.sparsity(step))
        apply_masks(self._model, self.masks)

    def finish(self) -> None:
        """Make the sparsity the final one, wherever the training ended."""
        self._renew(1.0)
        apply_masks(self._model, self.masks)

    def _renew(self, way: float) -> None:
        """Masks at this fraction of the final sparsity."""
        asked = self._sparsity
        now = {name: way * s for name, s in asked.items()} if isinstance(asked, Mapping) else way * asked
        widths = weight_widths(self._model, self._structure, now, self._scope, self.masks)
        self.masks = magnitude_masks(self._model, self._structure, widths, self.masks)


def check_scope(scope: str) -> Scope:
    """Raises ValueError where there is no such scope."""
    if scope not in get_args(Scope):
        near = did_you_mean(scope, get_args(Scope))
        raise ValueError(f"scope = {scope!r}: give one of {', '.join(get_args(Scope))}{near}")
    return cast(Scope, scope)


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """Raises ValueError where it is not in [0, 1)."""
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"{name} = {sparsity:g}: give the fraction to remove, at least 0 and below 1")
    return sparsity


def _sparsities(structure: WeightStructure, sparsity: Sparsity) -> list[float]:
    """One a tensor."""
    if not isinstance(sparsity, Mapping):
        return [check_sparsity(sparsity)] * len(structure.layers)
    names = [layer.name for layer in structure.layers]
    for name in sparsity:
        if name not in names:
            raise ValueError(f"sparsity names {name!r}, which is no weight to prune here{did_you_mean(name, names)}")
    return [check_sparsity(sparsity.get(name, 0.0), f"sparsity of {name}") for name in names]


def _magnitudes(model: nn.Module, structure: WeightStructure, masks: Mapping[str, Tensor] | None) -> list[Tensor]:
    """|w| of every tensor, flat, in a copy; −1 for what was removed: below a kept weight that happens to be 0."""
    found = []
    for layer in structure.layers:
        size = model.get_parameter(layer.name).detach().abs()
        found.append((size if masks is None else size.masked_fill(~masks[layer.name], -1.0)).flatten())
    return found
