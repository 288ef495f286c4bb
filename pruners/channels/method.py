"""The method `channels`: a unit is a channel with everything coupled to it; the network gets physically smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ...configs.schema import LayersConfig
from ...storage.reading import validated
from ...training.inputs import InputShape
from ..context import Context
from ..costs.counts import ChannelMeasures
from ..costs.measures import Measured
from ..method import METHODS, Compressed
from ..structure import Floats, Kept, Layer, PlanError, Structure
from .coupling import find_layers
from .criteria import check_criterion, elimination, filters, rank, scale_statistics, select
from .shrink import check_positions, mask, narrow, shrink
from .slices import ChannelLayer, ChannelStructure, Selection


class _Cut(BaseModel):
    """Which positions of a tensor's dimension stay."""

    model_config = ConfigDict(extra="forbid")

    tensor: str
    dim: Annotated[int, Field(ge=0)]
    positions: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class _Recipe(BaseModel):
    kept: list[_Cut]


class Channels:
    """Channel pruning (He, Zhang, Sun, ICCV 2017): ridge regression on the columns that survive."""

    name = "channels"
    unit = "channels"
    criterion = "obs"
    max_sparsity = 0.9
    own_settings = ("cut", "tie")

    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> ChannelStructure:
        """Coupling groups; see `find_layers`."""
        if config.activation_bits:
            raise PlanError("layers.activation_bits is for method: bits; leave it out with method: channels")
        return find_layers(
            model, input_shape, cut=config.cut, ignore=config.ignore, tie=config.tie, round_to=config.round_to
        )

    def measured(self, structure: Structure, names: Sequence[str]) -> Measured:
        """What the tensors of these names measure where channels went; see `method.Leader`."""
        return ChannelMeasures(cast(ChannelStructure, structure).layers, names, structure.shapes, structure.costs)

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where there is no such criterion."""
        check_criterion(name)

    def curves(self, context: Context) -> list[Floats]:
        """Of the layers' elimination orders."""
        return [elimination(context, layer).errors[layer.levels] for layer in _structure(context).layers]

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """Squared filter norms, over all coupled producers."""
        own = filters(context, cast(ChannelLayer, layer))
        return np.asarray(np.sum([filters.square().sum(1).cpu().numpy() for filters in own], axis=0))

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the first producer, and of all consumers and batch norms."""
        layer, structure = cast(ChannelLayer, layer), _structure(context)
        operation = next(op for op in structure.operations if op.module == layer.module)
        return {
            "linear": float(len(operation.shape) == 2),
            "trunk": float(layer.trunk),
            "inputs": float(operation.shape[1]),
            "consumers": float(sum(structure.shapes[part.parameter][1 - part.dim] for part in layer.weights("in"))),
            "resolution": float(operation.output[0] * operation.output[1]),
            "stride": float(operation.stride),
            "kernel": float(operation.shape[-1] if len(operation.shape) > 2 else 1),
            **scale_statistics(context, layer),
        }

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """The best units of every layer, cut out."""
        structure = _structure(context)
        return cut(context.model, structure, self.selection(context, kept))

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The same units zeroed."""
        return mask(context.model, _structure(context), self.selection(context, kept))

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """By the positions that stay."""
        cuts = validated(_Recipe, recipe, "this is no recipe of pruned channels").kept
        positions = {(cut.tensor, cut.dim): np.array(cut.positions, dtype=np.int64) for cut in cuts}
        if len(positions) < len(cuts):
            raise ValueError("this is no recipe of pruned channels: it cuts a dimension of a tensor twice")
        check_positions(model, positions)
        return narrow(model, positions)

    def selection(self, context: Context, kept: Kept) -> Selection:
        """The units that stay, ascending, by the context's criterion."""
        return select(rank(context, context.ranking_criterion), kept)


def cut(model: nn.Module, structure: ChannelStructure, selection: Selection) -> Compressed:
    """The network that keeps these units, and what a repair needs to know of it.

    Args:
        model: the dense network; not changed.
        structure: its layers.
        selection: for every layer the units that stay, ascending.
    """
    positions = structure.positions(selection)
    roles = {(part.parameter, part.dim): part.role for layer in structure.layers for part in layer.slices}

    def along(*wanted: str) -> dict[str, NDArray[np.int64]]:
        found = {
            name: at for (name, dim), at in positions.items() if roles[name, dim] in wanted and name.endswith(".weight")
        }
        return {name.removesuffix(".weight"): at for name, at in found.items()}

    columns = along("in")
    return Compressed(
        model=shrink(model, structure, selection).eval(),
        recipe={
            "kept": [{"tensor": name, "dim": dim, "positions": at.tolist()} for (name, dim), at in positions.items()]
        },
        columns=columns,
        rows=along("out", "through"),
        cut=frozenset(name.rpartition(".")[0] for (name, dim) in positions if roles[name, dim] == "in"),
    )


def _structure(context: Context) -> ChannelStructure:
    return cast(ChannelStructure, context.structure)


METHODS.register("channels")(Channels())
