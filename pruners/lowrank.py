"""The method `lowrank`: a unit is a rank; a convolution or linear layer becomes two, with fewer features in between.

Jaderberg, Vedaldi, Zisserman (BMVC 2014): a k×1 and a 1×k convolution; Zhang, Zou, He, Sun (TPAMI 2016): a k×k and a
1×1. The factors are those whose outputs come nearest to the layer's on the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..configs import Registry
from ..configs.schema import LayersConfig
from ..networks.checks import check_weights
from ..networks.copying import copied, rebuilt
from ..networks.factors import Kind, check_rank, corners, factorised, full_rank, input_widths, matrix, why_whole
from ..networks.inference import example_images
from ..networks.norms import shift_output
from ..networks.world import undisturbed
from ..storage.reading import shown, validated
from ..training.inputs import InputShape, as_shape
from .context import Context
from .costs.counts import Operation, count_operations, uncounted_flops
from .costs.measures import Measures
from .costs.ranks import RankCost, TwoLayers
from .method import METHODS, Compressed
from .repair.reduced_rank import RankSolve, Reduced, Reduction
from .repair.statistics import Sampler
from .scope import choices_of, ignored_names, no_branches, no_grids
from .structure import Floats, Kept, Layer, PlanError, Structure

Metric = Callable[[Context, str], Tensor | None]

PROBES = (0.5, 0.75, 0.875, 0.95)  # the first ranks to go hold little that the answer is read from, the last a lot

CRITERIA: Registry[Metric] = Registry("criterion of lowrank", adopt=lambda _name, metric, _known: metric)


@CRITERIA.register("data")
def data(context: Context, name: str) -> Tensor | None:
    """(inputs, inputs) second moments of a layer's inputs: what is missed of its outputs counts. None where the moments
    are not known."""
    return context.moments.gram(context.model, name)[0] if name in context.moments.inputs else None


@CRITERIA.register("svd")
def svd(_context: Context, _name: str) -> Tensor | None:
    """None, for the identity: what is missed of the weights counts, whatever the inputs are."""
    return None


@dataclass(frozen=True, kw_only=True)
class RankLayer(Layer):
    """A convolution or linear layer.

    Attributes:
        kind: of the two that it becomes.
        two: what they cost.
        most: the highest rank at which they cost less than the layer.
    """

    kind: Kind
    two: TwoLayers
    most: int

    @property
    def alone(self) -> str:
        """Why it cannot be in one search with channels; "" where it can."""
        return "" if self.two.before == self.two.behind else "its two layers would work on images of different sizes"


class _Ranked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    module: str
    rank: Annotated[int, Field(ge=1)]
    kind: Literal["channel", "spatial"]


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ranks: list[_Ranked]


class LowRank:
    """Factorisation with repair: reduced-rank regression on what reaches the layer (see `RankSolve`)."""

    name = "lowrank"
    unit = "ranks"
    criterion = "data"
    max_sparsity = 0.95
    own_settings = ("factors",)

    @undisturbed()
    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> Structure:
        """Convolutions and linear layers that are called once, with a weight of their own.

        Choices are the ranks (multiples of `round_to`) at which two layers cost less than the one, in FLOPs and in
        parameters, and the layer as it is.

        Raises:
            ValueError: the network does not run on such an image, or returns no row for each.
            PlanError: no layer is left, or the config names an unknown one, or what is not for ranks.
        """
        no_branches(config, self.name)
        no_grids(config, self.name)
        for name in ("tie", "pattern"):
            if getattr(config, name):
                raise PlanError(f"layers.{name}: not for ranks; leave it out with method: lowrank")
        check_weights(model)
        model = copied(model).eval()
        example = example_images(model, input_shape)
        operations = {op.module: op for op in count_operations(model, example)}
        widths = input_widths(model, example)
        reasons = why_whole(model, widths)
        names = {name: [name] for name, reason in reasons.items() if not reason}
        whole = {name: reason for name, reason in reasons.items() if reason}
        whole |= dict.fromkeys(sorted(ignored_names(model, names, config.ignore, whole)), "excluded by the config")
        layers = []
        for name in names:
            if name in whole:
                continue
            layer = _layer(name, operations[name], widths[name][0], config)
            if len(layer.choices) == 1:
                whole[name] = "no rank that may be kept costs less than the layer"
            else:
                layers.append(layer)
        if not layers:
            raise PlanError("no layer to factorise: of no convolution or linear layer would two be cheaper")
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        flops = sum(op.flops for op in operations.values())
        flops += uncounted_flops(model, example, list(operations.values()))
        params = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
        dense = Measures.of([shapes[f"{layer.name}.weight"] for layer in layers], flops, params)
        of = [layer.two for layer in layers], [layer.most for layer in layers], dense
        return Structure(
            method=self.name,
            layers=tuple(layers),
            costs={"flops": RankCost(*of, "flops"), "params": RankCost(*of, "params")},
            ignored=whole,
            shapes=shapes,
            input_shape=as_shape(input_shape),
            first_units=first_ranks,
            apart=tuple(layer.most for layer in layers),
        )

    def narrowed(self, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Structure:
        """The same layers, smaller, of which some are two no longer; as `RankCost` counts. See `method.Follower`."""
        layers = tuple(_narrowed(_ranked(layer), shapes[f"{layer.name}.weight"]) for layer in structure.layers)
        return replace(structure, layers=layers, shapes=shapes)

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where there is no such criterion."""
        _ = CRITERIA[name]

    def curves(self, context: Context) -> list[Floats]:
        """By the moments: exact on the calibration images, where the layer's inputs are the dense network's."""

        def measure(layer: RankLayer) -> dict[str, Tensor]:
            return {"curve": torch.from_numpy(_curve(_known(context, layer, self.criterion).reduction, layer))}

        found = [context.store.get(f"lowrank-{layer.name}", partial(measure, layer)) for layer in _layers(context)]
        return [tensors["curve"].numpy() for tensors in found]

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """(ranks,) squared singular values, falling."""
        weight = context.model.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        values = torch.linalg.svdvals(matrix(weight.detach().double(), _ranked(layer).kind))
        return np.asarray(values.square().cpu().numpy())

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the layer as it is."""
        shape = context.structure.shapes[layer.parameters[0]]
        module: Any = context.model.get_submodule(layer.name)
        linear = isinstance(module, nn.Linear)
        flops = context.structure.costs["flops"]
        whole = flops.whole[context.structure.index(layer.name)] if isinstance(flops, RankCost) else 1
        return {
            "linear": float(linear),
            "inputs": float(shape[1]),
            "consumers": float(shape[0]),
            "resolution": float(whole / np.prod(shape)),
            "stride": 1.0 if linear else float(module.stride[0]),
            "kernel": 1.0 if linear else float(shape[-1]),
        }

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """Every layer that keeps few enough ranks as two."""
        found = _reduced(context, kept)
        kinds = {layer.name: layer.kind for layer in _layers(context)}
        ranks = {name: (layer.rank, kinds[name]) for name, layer in found.items()}
        return Compressed(
            model=factorised(_replaced(context, found), ranks).eval(),
            recipe={"ranks": [{"module": name, "rank": rank, "kind": kind} for name, (rank, kind) in ranks.items()]},
            cut=frozenset(found),
            solve=RankSolve(found),
        )

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The layers as they are, with the two's product as their weight."""
        return _replaced(context, _reduced(context, kept))

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """By module, rank and kind; of weights that matter, what is nearest to them."""
        told = validated(_Recipe, recipe, "this is no recipe of factorised layers").ranks
        ranks: dict[str, tuple[int, Kind]] = {}
        for entry in told:
            if entry.module in ranks:
                raise ValueError(f"the recipe factorises {shown(entry.module)} twice")
            check_rank(model, entry.module, entry.rank, entry.kind)
            ranks[entry.module] = entry.rank, entry.kind
        return factorised(_shared(model), ranks)


def first_ranks(model: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
    """The network whose layers have so many ranks (layers,), whichever: `Structure.first_units`."""
    pairs = zip(map(_ranked, structure.layers), kept.tolist(), strict=True)
    ranks = {layer.name: (count, layer.kind) for layer, count in pairs if count <= layer.most}
    return factorised(_shared(model), ranks, corners).eval()


def _shared(model: nn.Module) -> nn.Module:
    """A copy round the same tensors."""
    return rebuilt(model, lambda _name, tensor: tensor)


def _layers(context: Context) -> list[RankLayer]:
    return [_ranked(layer) for layer in context.structure.layers]


def _ranked(layer: Layer) -> RankLayer:
    assert isinstance(layer, RankLayer)
    return layer


def _layer(name: str, operation: Operation, width: int, config: LayersConfig) -> RankLayer:
    """A layer with its choices.

    Args:
        name: of the module.
        operation: what it computes.
        width: of its input, in pixels.
        config: what the user says of the layers.
    """
    shape = operation.shape
    spatial = config.factors == "spatial" and len(shape) == 4 and min(shape[2:]) > 1
    # between a k×1 and a 1×k convolution the image is as wide as it came in
    before = operation.positions // operation.output[1] * width if spatial else operation.positions
    of = (shape[2], shape[3], before) if spatial else (int(np.prod(shape[2:])), 1, before)
    kind: Kind = "spatial" if spatial else "channel"
    two = TwoLayers(*of, operation.positions)
    units, most = full_rank(shape, kind), two.most(shape)
    return RankLayer(
        name,
        units,
        (*(n for n in choices_of(name, units, config.round_to) if n <= most), units),
        members=(kind,),
        parameters=(f"{name}.weight",),
        consumers=(name,),
        probes=PROBES,
        kind=kind,
        two=two,
        most=most,
    )


def _narrowed(layer: RankLayer, shape: tuple[int, ...]) -> RankLayer:
    """In a network whose layer has a weight of this shape."""
    units = full_rank(shape, layer.kind)
    choices = sorted({min(choice, units) for choice in layer.choices})
    return replace(layer, units=units, choices=tuple(choices), most=min(layer.most, layer.two.most(shape)))


@dataclass(frozen=True)
class _Known:
    """What is computed of a layer once.

    Attributes:
        reduction: its weights of every rank.
        mean: (inputs,) of its inputs, where it is known and a constant can be added behind the layer.
    """

    reduction: Reduction
    mean: Tensor | None


def _known(context: Context, layer: RankLayer, criterion: str) -> _Known:
    memo: dict[str, _Known] = context.memo.setdefault(f"lowrank-{criterion}", {})
    if layer.name not in memo:
        module: Any = context.model.get_submodule(layer.name)
        weight = Sampler(module).weight(module.weight.detach())[0]
        kernel = tuple(module.kernel_size) if layer.kind == "spatial" else None
        gram = CRITERIA[criterion](context, layer.name)
        shifts = gram is not None and context.moments.has_intercept(context.model, layer.name)
        mean = context.moments.inputs[layer.name].mean[0] if shifts else None
        memo[layer.name] = _Known(Reduction.of(weight, gram, kernel), mean)
    return memo[layer.name]


def _curve(reduction: Reduction, layer: RankLayer) -> Floats:
    """(choices,) what is missed over what there is."""
    less = layer.levels[:-1]  # none, where the layer as it is takes no longer than at any rank
    lost = reduction.lost(int(less.max(initial=1))).cpu().numpy()[less - 1]
    shares = np.clip(lost / max(reduction.total, np.finfo(np.float64).tiny), 0.0, 1.0)
    return np.minimum.accumulate(np.append(shares, 0.0))


def _reduced(context: Context, kept: Kept) -> dict[str, Reduced]:
    """Layer's name → what it is brought to, where it is."""
    found = {}
    for layer, count in zip(_layers(context), kept, strict=True):
        if count <= layer.most:
            reduction, rank = _known(context, layer, context.ranking_criterion).reduction, int(count)
            found[layer.name] = Reduced(reduction.target, reduction.at(rank), rank, reduction.kernel)
    return found


def _replaced(context: Context, found: Mapping[str, Reduced]) -> nn.Module:
    """The network with other weights, of the dense shape; outputs keep their means, where the inputs' are known."""

    def change(parameter: str, tensor: Tensor) -> Tensor:
        name = parameter.removesuffix(".weight")
        if name not in found or name == parameter:
            return tensor
        return Sampler(context.model.get_submodule(name)).unweight(found[name].weight.unsqueeze(0), tensor)

    model = rebuilt(context.model, change)
    for layer in _layers(context):
        mean = _known(context, layer, context.ranking_criterion).mean if layer.name in found else None
        if mean is not None:
            gone = found[layer.name].target - found[layer.name].weight
            shift_output(model, layer.name, context.moments.norms.get(layer.name), gone @ mean)
    return model


METHODS.register("lowrank")(LowRank())
