"""The method `bits`: a layer is a weight tensor, its units the bits of each weight; 32 leave it as it is.

Fewer bits are fewer bytes on disk and, where the processor has integer kernels, less to move and to multiply. The
network computes with floats that lie on a grid: codes times a scale an output, which is kept beside the weight
(`weight_scale`), so that the codes are weight / scale, exactly; or values that all of a tensor's weights share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..configs.schema import GridName, LayersConfig
from ..networks.copying import copied, rebuilt
from ..networks.norms import CONVOLUTIONS
from ..networks.quantise.grid import FINEST, FULL
from ..networks.quantise.observed import input_ranges, set_input_grid
from ..networks.quantise.on_grid import GRIDS, GridKind, Grids, Levels, OnGrid
from ..storage.reading import shown, validated
from ..training.inputs import InputShape
from .context import Context
from .costs.counts import LinearCost
from .costs.measures import AsMeasured, Measures
from .costs.stored import BitOperations, Size
from .method import METHODS, Compressed
from .repair.gram import variance
from .repair.rounding import ROUNDINGS, Rounded, Rounding, rounded
from .repair.solve import RIDGE, damping, masked_ridge_step, ridge_step
from .repair.statistics import Sampler
from .scope import no_branches, step_of
from .structure import Floats, Kept, Layer, PlanError, Structure
from .weights import Weights

BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True, kw_only=True)
class BitLayer(Layer):
    """A weight tensor.

    Attributes:
        positions: at which it is laid on an image, over all modules that use it.
        inputs: bits of what it is multiplied with, where its own are fewer than all.
        grid: what its weights may be, by its name in `GRIDS`.
    """

    positions: int
    inputs: int = FULL
    grid: GridName = "row"


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bits: dict[str, Annotated[int, Field(ge=2, le=FINEST)]]
    grid: GridName = "row"
    inputs: dict[str, Annotated[int, Field(ge=2, le=FINEST)]] = {}


class Bits:
    """Weights rounded to few bits, fitted: GPTQ (Frantar et al. 2022) on what the compressed network computes."""

    name = "bits"
    unit = "bits"
    criterion = "gptq"
    max_sparsity = 0.95
    own_settings = ("activation_bits", "grid")

    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> Structure:
        """The weight tensors of convolutions and linear layers; biases and norms stay. Tied weights are one tensor.

        Choices are 2, 3, 4, 6 and 8 bits (those that are multiples of `round_to`), and the tensor as it is.

        Raises:
            ValueError: the network does not run on such an image, or returns no row for each.
            PlanError: no weight is there, or the config names an unknown one, or what is for other methods.
        """
        no_branches(config, self.name)
        if config.pattern or config.tie:
            raise PlanError(f"layers.{'pattern' if config.pattern else 'tie'} is not for method: bits; leave it out")
        found = Weights().find(model, input_shape, LayersConfig(ignore=config.ignore))
        macs, params = (found.cost(kind, found.units) for kind in ("flops", "params"))
        layers = [_bit_layer(found, index, config) for index in range(len(found.layers))]
        dense = Measures.of([found.shapes[layer.name] for layer in layers], macs, params)
        factors = [layer.positions for layer in layers], [layer.inputs for layer in layers]
        return replace(
            found,
            method=self.name,
            layers=tuple(layers),
            costs={
                "flops": AsMeasured(dense, "flops"),
                "params": AsMeasured(dense, "params"),
                "size": Size(dense, shared=config.grid == "shared"),
                "bops": BitOperations(dense, *factors),
            },
        )

    def narrowed(self, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Structure:
        """The same tensors, smaller; see `method.Follower`."""
        return replace(structure, shapes=shapes)

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where there is no such criterion."""
        _ = ROUNDINGS[name]

    def curves(self, context: Context) -> list[Floats]:
        """What the output loses, rounded by `gptq` on the dense network's moments; computed once."""

        def measure() -> dict[str, Tensor]:
            return {layer.name: torch.from_numpy(_curve(context, layer)) for layer in context.structure.layers}

        found = context.store.get(f"{_layer(context).grid}-curves", measure)
        return [found[layer.name].numpy() for layer in context.structure.layers]

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """(32,) what each bit adds to the squared norm: each halves the error of the one before."""
        norm = float(context.model.get_parameter(layer.name).detach().double().square().sum())
        return np.asarray(norm * 3.0 * 4.0 ** -np.arange(1.0, layer.units + 1))

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the first module that uses the tensor."""
        assert isinstance(layer, BitLayer)
        return {**Weights().features(context, layer), "resolution": float(layer.positions)}

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """Every tensor on the grid of its bits, rounded by the criterion on the dense network's moments.

        A weight that is zero, since another method pruned it before, stays zero.
        """
        grids, grid = _grids(context.structure, kept), _layer(context).grid
        found = {name: _on_grid(context, name, bits) for name, bits in grids.items()}
        model = rebuilt(context.model, lambda name, tensor: found[name][0] if name in found else tensor).eval()
        for name, (_, levels) in found.items():
            GRIDS[grid].keep(model, name, levels)
        inputs = _lay_input_grids(context, model, grids)
        users = {
            module: layer.name
            for layer in context.structure.layers
            if layer.name in grids
            for module in layer.consumers
        }
        return Compressed(
            model=model,
            recipe=_Recipe(bits=grids, grid=grid, inputs=inputs).model_dump(exclude_defaults=True),
            cut=frozenset(users),
            solve=GridSolve(context.model, model, users, grids, GRIDS[grid], ROUNDINGS[context.ranking_criterion]),
            hold=OnGrid(
                grids, GRIDS[grid], {name: mask for name in grids if (mask := _zeros(context.model, name)).any()}
            ),
        )

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The dense network, its weights set to what they are rounded to."""
        model = copied(context.model)
        for name, bits in _grids(context.structure, kept).items():
            model.get_parameter(name).data.copy_(_on_grid(context, name, bits)[0])
        _lay_input_grids(context, model, _grids(context.structure, kept))
        return model

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """The architecture itself, with a place for what its grids keep; the weights on the grid are saved."""
        told = validated(_Recipe, recipe, "this is no recipe of bits")
        known = {
            f"{name}.weight".lstrip("."): module
            for name, module in model.named_modules()
            if isinstance(module, (*CONVOLUTIONS, nn.Linear))
        }
        for name in (*told.bits, *(f"{module}.weight".lstrip(".") for module in told.inputs)):
            if name not in known:
                raise ValueError(f"the recipe gives {shown(name)} its bits: no such weights")
        for name in told.bits:
            GRIDS[told.grid].place(model, name)
        for name, bits in told.inputs.items():
            set_input_grid(model, name, bits)
        return model


@dataclass(frozen=True)
class GridSolve:
    """The step to the point of the grid at which a fit ends; see `Solve`.

    The fit is that of any step (a ridge towards the dense weights), and its result is rounded by the same moments; so
    what is rounded makes up for what the layers before have lost.

    Attributes:
        dense: the network whose weights the fit stays near.
        model: the compressed one; its scales are set.
        users: module → the tensor it uses.
        grids: the bits of each.
        kind: of grids.
        rounding: how.
    """

    dense: nn.Module
    model: nn.Module
    users: Mapping[str, str]
    grids: Grids
    kind: GridKind
    rounding: Rounding

    def __call__(self, name: str, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """(groups, p, q) the step."""
        tensor, sampler = self.users[name], Sampler(self.model.get_submodule(name))
        parameter = self.model.get_parameter(tensor)
        now = sampler.weight(parameter.detach())
        whole = sampler.weight(self.dense.get_parameter(tensor).detach())
        missing = cross + gram @ (now - whole).transpose(1, 2)
        kept = whole != 0.0  # what is zero was pruned before, and stays so
        free = bool(kept.all())
        step = ridge_step(gram, missing, ridge) if free else masked_ridge_step(gram, missing, ridge, kept)
        wanted = whole + step.transpose(1, 2)
        found = rounded(wanted, gram, ridge, self.grids[tensor], self.rounding, parameter.dtype, self.kind)
        self.kind.keep(self.model, tensor, found.levels.of(parameter.detach()))
        return (found.weight - now).transpose(1, 2)


def _zeros(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach() == 0.0


def _bit_layer(found: Structure, index: int, config: LayersConfig) -> BitLayer:
    layer, macs = found.layers[index], found.costs["flops"]
    assert isinstance(macs, LinearCost)
    step = step_of(layer.name, config.round_to)
    return BitLayer(
        layer.name,
        FULL,
        (*(bits for bits in BITS if bits % step == 0), FULL),
        parameters=layer.parameters,
        consumers=layer.consumers,
        positions=int(macs.factors[index]),
        inputs=config.activation_bits or FULL,
        grid=config.grid,
    )


def _layer(context: Context) -> BitLayer:
    """Any one; what the config says of all, they all know."""
    layer = context.structure.layers[0]
    assert isinstance(layer, BitLayer)
    return layer


def _grids(structure: Structure, kept: Kept) -> Grids:
    """The tensors that are rounded.

    Raises:
        PlanError: to fewer than two bits.
    """
    pairs = [(layer.name, int(bits)) for layer, bits in zip(structure.layers, kept, strict=True)]
    for name, bits in pairs:
        if bits < 2:
            raise PlanError(
                f"layer {name}: {bits} bits: a symmetric grid has 2 or more; {FULL} leave a weight as it is"
            )
    return {name: bits for name, bits in pairs if bits <= FINEST}


def _on_grid(context: Context, name: str, bits: int) -> tuple[Tensor, Levels]:
    """A tensor rounded by the context's criterion, and the levels it is on; remembered as codes."""
    weight = context.model.get_parameter(name).detach()
    known: dict[str, tuple[Tensor, Levels]] = context.memo.setdefault(f"bits-{context.ranking_criterion}", {})
    key = f"{name} {bits}"
    if key not in known:
        layer = context.structure.layers[context.structure.index(name)]
        module, rounding = _module_of(context, layer), ROUNDINGS[context.ranking_criterion]
        stats = context.moments.inputs.get(module)  # not centred: nothing takes up what the outputs' means lose
        gram = None if stats is None else stats.raw()[0]
        found = _rounded(context, layer, module, gram, bits, rounding)
        levels = found.levels.of(weight)
        laid = Sampler(context.model.get_submodule(module)).unweight(found.weight, weight)
        known[key] = levels.codes(laid).to(torch.int16), levels
    codes, levels = known[key]
    return levels.values(codes) * (weight != 0.0), levels


def _lay_input_grids(context: Context, model: nn.Module, grids: Grids) -> dict[str, int]:
    """Put the inputs of what is rounded on grids of their own, in place, where the config asks for it: module → bits.

    Their ranges are those of the dense network's inputs, on the calibration images.
    """
    asked = {
        module: layer.inputs
        for layer in context.structure.layers
        if isinstance(layer, BitLayer) and layer.inputs < FULL
        for module in layer.consumers
    }
    if not asked or not grids:
        return {}
    if "bits-ranges" not in context.memo:
        bits = next(iter(asked.values()))
        context.memo["bits-ranges"] = input_ranges(context.model, asked, context.calibration, bits)
    ranges: dict[str, Tensor] = context.memo["bits-ranges"]
    rounded_ones = {module for layer in context.structure.layers if layer.name in grids for module in layer.consumers}
    found = {module: bits for module, bits in asked.items() if module in rounded_ones and module in ranges}
    for module, bits in found.items():
        set_input_grid(model, module, bits, ranges[module])
    return found


def _module_of(context: Context, layer: Layer) -> str:
    """Whose inputs a tensor is rounded by: the first that has moments."""
    return next((name for name in layer.consumers if name in context.moments.inputs), layer.consumers[0])


def _rounded(
    context: Context, layer: Layer, module: str, gram: Tensor | None, bits: int, rounding: Rounding
) -> Rounded:
    weight = context.model.get_parameter(layer.name).detach()
    matrix = Sampler(context.model.get_submodule(module)).weight(weight)
    ridge = RIDGE if gram is None else damping(context.moments.inputs[module].count, matrix.shape[2])
    assert isinstance(layer, BitLayer)
    return rounded(matrix, gram, ridge, bits, rounding, weight.dtype, GRIDS[layer.grid])


def _curve(context: Context, layer: Layer) -> Floats:
    """(choices,) 1 − R² of the outputs of the module that the tensor is rounded by; of the weights, without moments."""
    module = _module_of(context, layer)
    matrix = Sampler(context.model.get_submodule(module)).weight(context.model.get_parameter(layer.name).detach())
    gram = context.moments.gram(context.model, module) if module in context.moments.inputs else None
    if gram is None or not variance(matrix, gram) > 0.0:
        gram = None
    metric = torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device)[None] if gram is None else gram
    metric = metric.expand(len(matrix), -1, -1)
    total = max(variance(matrix, metric), torch.finfo(matrix.dtype).tiny)
    errors = [
        variance(_rounded(context, layer, module, gram, bits, ROUNDINGS["gptq"]).weight - matrix, metric) / total
        for bits in layer.choices[:-1]
    ]
    return np.asarray(np.minimum.accumulate(np.clip([*errors, 0.0], 0.0, 1.0)))


METHODS.register("bits")(Bits())
