"""The method `bits`: a layer is a weight tensor, its units the bits of each weight; 32 leave it as it is.

Fewer bits are fewer bytes on disk and, where the processor has integer kernels, less to move and to multiply. The
network computes with floats that lie on a grid: codes times a scale an output, which is kept beside the weight
(`weight_scale`), so that the codes are weight / scale, exactly; or values that all of a tensor's weights share. What
a tensor is multiplied with may be rounded too: to bits that the config says, or to some that are a layer of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..configs.schema import GridName, LayersConfig
from ..networks.copying import copied, rebuilt
from ..networks.norms import CONVOLUTIONS
from ..networks.quantise.grid import FINEST, FULL
from ..networks.quantise.observed import SeenInputs, set_input_grid
from ..networks.quantise.on_grid import GRIDS, Grids, Levels, OnGrid
from ..networks.quantise.quantisers import can_quantise
from ..storage.reading import shown, validated
from ..training.inputs import InputShape
from .context import Context, consumers
from .costs.counts import LinearCost
from .costs.measures import AsMeasured, Measures
from .costs.stored import BitOperations, Size
from .method import METHODS, Compressed
from .repair.rounding import ROUNDINGS, GridSolve, losses, rounded
from .repair.sensitivity import few_images
from .repair.solve import RIDGE, damping
from .repair.statistics import Sampler
from .scope import bits_of_inputs, chooses_inputs, ignored_names, no_branches, step_of
from .structure import Floats, Kept, Layer, PlanError, Structure
from .weights import Weights

BITS = (2, 3, 4, 6, 8)
INPUTS = ".inputs"  # behind the name of the module

Asked = int | list[int] | None


@dataclass(frozen=True, kw_only=True)
class BitLayer(Layer):
    """A weight tensor; or, where it is `like` one, what that is multiplied with.

    Attributes:
        positions: at which the tensor is laid on an image, over all modules that use it.
        inputs: bits of what it is multiplied with, where its own are fewer than all and those are no layer.
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

        Choices are 2, 3, 4, 6 and 8 bits (those that are multiples of `round_to`), and the tensor as it is. Where
        `activation_bits` is a list, what a tensor is multiplied with is the next layer, `MODULE.inputs`, and its
        choices are those, and floats.

        Raises:
            ValueError: the network does not run on such an image, or returns no row for each.
            PlanError: no weight is there, or the config names an unknown one, or what is for other methods.
        """
        no_branches(config, self.name)
        if config.pattern or config.tie:
            raise PlanError(f"layers.{'pattern' if config.pattern else 'tie'} is not for method: bits; leave it out")
        for_inputs = [name for name in config.ignore if chooses_inputs(config) and name.endswith(INPUTS)]
        others = LayersConfig(ignore=[name for name in config.ignore if name not in for_inputs])
        found = Weights().find(model, input_shape, others)
        modules = [layer.consumers[0] for layer in found.layers]
        asked = bits_of_inputs(modules, [name.removesuffix(".weight") for name in found.ignored], config)
        tensors = _tensors(found, asked, config)
        inputs, floats = _chosen_inputs(model, tensors, asked, for_inputs, config)
        layers = [layer for tensor in tensors for layer in (tensor, *inputs.get(tensor.name, ()))]
        macs, params = (found.cost(kind, found.units) for kind in ("flops", "params"))
        dense = Measures.of([found.shapes[layer.name] for layer in tensors], macs, params)
        places = [place for place, layer in enumerate(layers) if not layer.like]
        chosen = {layer.like: place for place, layer in enumerate(layers)}
        factors = [(layer.positions, layer.inputs, chosen.get(layer.name)) for layer in tensors]
        return replace(
            found,
            method=self.name,
            layers=tuple(layers),
            costs={
                "flops": AsMeasured(dense, "flops"),
                "params": AsMeasured(dense, "params"),
                "size": Size(dense, places, shared=config.grid == "shared"),
                "bops": BitOperations(dense, places, factors),
            },
            ignored={**found.ignored, **floats},
            in_turn=bool(inputs),
        )

    def narrowed(self, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Structure:
        """The same tensors, smaller; see `method.Follower`."""
        return replace(structure, shapes=shapes)

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where there is no such criterion."""
        _ = ROUNDINGS[name]

    def curves(self, context: Context) -> list[Floats]:
        """What the output loses, computed once: of weights rounded by `gptq` on the dense network's moments, and of
        rounded inputs as it is measured on calibration images."""
        tensors, inputs = _parts(context.structure)

        def measure() -> dict[str, Tensor]:
            return {layer.name: torch.from_numpy(_curve(context, layer)) for layer in tensors}

        found = dict(context.store.get(f"{tensors[0].grid}-curves", measure))
        if inputs:
            found |= context.store.get("inputs-curves", partial(_input_curves, context, inputs))
        return [found[layer.name].numpy() for layer in context.structure.layers]

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """(32,) what each bit adds to the squared norm: each halves the error of the one before. Of inputs that of the
        weights: a product loses as much by either."""
        norm = float(context.model.get_parameter(layer.parameters[0]).detach().double().square().sum())
        return np.asarray(norm * 3.0 * 4.0 ** -np.arange(1.0, layer.units + 1))

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the first module that uses the tensor."""
        assert isinstance(layer, BitLayer)
        return {**Weights().features(context, layer), "resolution": float(layer.positions)}

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """Every tensor on the grid of its bits, rounded by the criterion on the dense network's moments.

        A weight that is zero, since another method pruned it before, stays zero.
        """
        tensors, (grids, few) = _parts(context.structure)[0], _few(context.structure, kept)
        grid = tensors[0].grid
        found = {name: _on_grid(context, name, bits) for name, bits in grids.items()}
        model = rebuilt(context.model, lambda name, tensor: found[name][0] if name in found else tensor).eval()
        for name, (_, levels) in found.items():
            GRIDS[grid].keep(model, name, levels)
        inputs = _lay_input_grids(context, model, few)
        users = {
            module: layer.name
            for layer in tensors
            for module in layer.consumers
            if layer.name in grids or module in inputs
        }
        return Compressed(
            model=model,
            recipe=_Recipe(bits=grids, grid=grid, inputs=inputs).model_dump(exclude_defaults=True),
            cut=frozenset(users),
            solve=GridSolve(context.model, model, users, grids, GRIDS[grid], ROUNDINGS[context.ranking_criterion]),
            hold=OnGrid(
                grids, GRIDS[grid], {name: zero for name in grids if (zero := _weight(context, name) == 0.0).any()}
            ),
        )

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The dense network, its weights set to what they are rounded to."""
        model, (grids, few) = copied(context.model), _few(context.structure, kept)
        for name, bits in grids.items():
            model.get_parameter(name).data.copy_(_on_grid(context, name, bits)[0])
        _lay_input_grids(context, model, few)
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


def _tensors(found: Structure, asked: Sequence[Asked], config: LayersConfig) -> list[BitLayer]:
    macs = found.costs["flops"]
    assert isinstance(macs, LinearCost)
    return [
        BitLayer(
            layer.name,
            FULL,
            _choices(layer.name, BITS, config),
            parameters=layer.parameters,
            consumers=layer.consumers,
            positions=int(positions),
            inputs=bits if isinstance(bits, int) else FULL,
            grid=config.grid,
        )
        for layer, positions, bits in zip(found.layers, macs.factors, asked, strict=True)
    ]


def _chosen_inputs(
    model: nn.Module, tensors: Sequence[BitLayer], asked: Sequence[Asked], ignore: Sequence[str], config: LayersConfig
) -> tuple[dict[str, list[BitLayer]], dict[str, str]]:
    """Tensor → the layer that its inputs are, where their bits are a choice; and those that stay floats, with why."""
    found, floats = {}, {}
    for tensor, bits in zip(tensors, asked, strict=True):
        if isinstance(bits, list):
            name = f"{tensor.consumers[0]}{INPUTS}".lstrip(".")
            found[tensor.name] = replace(tensor, name=name, choices=_choices(name, bits, config), like=tensor.name)
            odd = [module for user in tensor.consumers if not can_quantise(module := model.get_submodule(user))]
            if odd or not tensor.positions:
                floats[name] = f"inputs of a {type(odd[0]).__name__} are not rounded" if odd else "it is never called"
    gone = ignored_names(model, {layer.name: [layer.name] for layer in found.values()}, ignore)
    floats |= dict.fromkeys(sorted(gone), "excluded by the config")
    return {tensor: [layer] for tensor, layer in found.items() if layer.name not in floats}, floats


def _choices(name: str, bits: Iterable[int], config: LayersConfig) -> tuple[int, ...]:
    step = step_of(name, config.round_to)
    return (*sorted({number for number in bits if number % step == 0}), FULL)


def _parts(structure: Structure) -> tuple[list[BitLayer], list[BitLayer]]:
    """The tensors, and the inputs whose bits are a choice."""
    layers = [layer for layer in structure.layers if isinstance(layer, BitLayer)]
    return [layer for layer in layers if not layer.like], [layer for layer in layers if layer.like]


def _few(structure: Structure, kept: Kept) -> tuple[Grids, dict[str, int]]:
    """Tensor → its bits, where it is rounded, and tensor → those of its inputs, where they are.

    Where the config says the bits of inputs, they are rounded if their weights are.

    Raises:
        PlanError: to fewer than two bits.
    """
    grids, inputs = {}, {}
    for layer, bits in zip(structure.layers, kept.tolist(), strict=True):
        assert isinstance(layer, BitLayer)
        if bits < 2:
            what = "a grid has 2 or more" if layer.like else "a symmetric grid has 2 or more"
            raise PlanError(f"layer {layer.name}: {bits} bits: {what}; {FULL} leave it as it is")
        if bits <= FINEST and layer.like:
            inputs[layer.like] = bits
        elif bits <= FINEST:
            grids[layer.name] = bits
            inputs |= {layer.name: layer.inputs} if layer.inputs < FULL else {}
    return grids, inputs


def _on_grid(context: Context, name: str, bits: int) -> tuple[Tensor, Levels]:
    """A tensor rounded by the context's criterion, and the levels it is on; remembered as codes."""
    weight = _weight(context, name)
    known: dict[str, tuple[Tensor, Levels]] = context.memo.setdefault(f"bits-{context.ranking_criterion}", {})
    key = f"{name} {bits}"
    if key not in known:
        layer, rounding = context.structure.layers[context.structure.index(name)], ROUNDINGS[context.ranking_criterion]
        assert isinstance(layer, BitLayer)
        module, matrix = _matrix(context, layer)
        stats = context.moments.inputs.get(module)  # not centred: nothing takes up what the outputs' means lose
        gram = None if stats is None else stats.raw()[0]
        ridge = RIDGE if stats is None else damping(stats.count, matrix.shape[2])
        found = rounded(matrix, gram, ridge, bits, rounding, weight.dtype, GRIDS[layer.grid])
        levels = found.levels.of(weight)
        laid = Sampler(context.model.get_submodule(module)).unweight(found.weight, weight)
        known[key] = levels.codes(laid).to(torch.int16), levels
    codes, levels = known[key]
    return levels.values(codes) * (weight != 0.0), levels


def _lay_input_grids(context: Context, model: nn.Module, inputs: Mapping[str, int]) -> dict[str, int]:
    """Put the inputs of tensors on grids of so many bits, in place: module → bits, of those that are called.

    Their ranges are those of the dense network's inputs, on the calibration images.
    """
    tensors, seen = _parts(context.structure)[0], _seen(context) if inputs else ()
    users = {user: inputs[layer.name] for layer in tensors if layer.name in inputs for user in layer.consumers}
    found = {module: bits for module, bits in users.items() if module in seen}
    for module, bits in found.items():
        set_input_grid(model, module, bits, _seen(context).range(module, bits))
    return found


def _seen(context: Context) -> SeenInputs:
    if "bits-inputs" not in context.memo:
        context.memo["bits-inputs"] = SeenInputs(context.model, consumers(context.structure), context.calibration)
    seen: SeenInputs = context.memo["bits-inputs"]
    return seen


def _input_curves(context: Context, layers: Sequence[BitLayer]) -> dict[str, Tensor]:
    """Layer → (choices,) 1 − R² of the outputs with rounded inputs, the mean over the modules that use the tensor."""
    bits = {user: layer.choices[:-1] for layer in layers for user in layer.consumers if user in _seen(context)}
    centred = {module for module in bits if context.moments.has_intercept(context.model, module)}
    lost = _seen(context).losses(bits, centred, few_images(context))
    found = {}
    for layer in layers:
        curve = torch.stack([lost[user] for user in layer.consumers if user in lost]).mean(0).cpu()
        found[layer.name] = torch.cat([curve, curve.new_zeros(1)]).clamp(0.0, 1.0).cummin(0).values
    return found


def _curve(context: Context, layer: BitLayer) -> Floats:
    """(choices,) 1 − R² of the outputs of the module that the tensor is rounded by; of the weights, without moments."""
    module, matrix = _matrix(context, layer)
    stats = context.moments.inputs.get(module)
    gram = None if stats is None else context.moments.gram(context.model, module)
    ridge = RIDGE if stats is None else damping(stats.count, matrix.shape[2])
    dtype, kind = _weight(context, layer.name).dtype, GRIDS[layer.grid]
    errors = [*losses(matrix, gram, ridge, layer.choices[:-1], dtype, kind), 0.0]
    return np.asarray(np.minimum.accumulate(np.clip(errors, 0.0, 1.0)))


def _matrix(context: Context, layer: Layer) -> tuple[str, Tensor]:
    """Whose inputs a tensor is rounded by, the first module that has moments, and (groups, q, p) the tensor there."""
    module = next((name for name in layer.consumers if name in context.moments.inputs), layer.consumers[0])
    return module, Sampler(context.model.get_submodule(module)).weight(_weight(context, layer.name))


def _weight(context: Context, name: str) -> Tensor:
    return context.model.get_parameter(name).detach()


METHODS.register("bits")(Bits())
