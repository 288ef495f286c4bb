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
from ..scope import sparsity_range
from ..structure import Branch, Floats, Kept, Layer, PlanError, Structure
from .branches import Means, check_branches, mean_outputs, without
from .coupling import find_layers
from .criteria import check_criterion, elimination, rank, scale_statistics, select, squared_norms
from .shrink import check_positions, mask, narrow, shrink
from .slices import ChannelLayer, ChannelStructure, Selection


class _Cut(BaseModel):
    """Which positions of a tensor's dimension stay."""

    model_config = ConfigDict(extra="forbid")

    tensor: str
    dim: Annotated[int, Field(ge=0)]
    positions: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


class _Gone(BaseModel):
    """A residual branch that went altogether; see `Branch`."""

    model_config = ConfigDict(extra="forbid")

    exit: str
    norm: str | None
    inside: list[str]

    @property
    def branch(self) -> Branch:
        """As `without` takes it."""
        return Branch((), self.exit, self.norm, tuple(self.inside), frozenset())


class _Recipe(BaseModel):
    kept: list[_Cut]
    gone: list[_Gone] = []


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
        otherwise = config.max_sparsity or self.max_sparsity

        def most(name: str) -> float:
            _, high = sparsity_range(name, config.bounds, otherwise)
            return high if high < 1.0 else otherwise

        return find_layers(
            model,
            input_shape,
            cut=config.cut,
            ignore=config.ignore,
            tie=config.tie,
            round_to=config.round_to,
            most=most if config.branches else None,
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
        return squared_norms(context, cast(ChannelLayer, layer))

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
        return cut(context.model, structure, self.selection(context, kept), _means(context, kept))

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The same units zeroed."""
        return mask(context.model, _structure(context), self.selection(context, kept), _means(context, kept))

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """By the branches that are gone and the positions that stay."""
        told = validated(_Recipe, recipe, "this is no recipe of pruned channels")
        cuts, gone = told.kept, [one.branch for one in told.gone]
        positions = {(cut.tensor, cut.dim): np.array(cut.positions, dtype=np.int64) for cut in cuts}
        if len(positions) < len(cuts):
            raise ValueError("this is no recipe of pruned channels: it cuts a dimension of a tensor twice")
        check_branches(model, gone)
        model = without(model, gone) if gone else model
        check_positions(model, positions)
        return narrow(model, positions)

    def selection(self, context: Context, kept: Kept) -> Selection:
        """The units that stay, ascending, by the context's criterion."""
        return select(rank(context, context.ranking_criterion), _structure(context).settled(kept))


def cut(model: nn.Module, structure: ChannelStructure, selection: Selection, means: Means | None = None) -> Compressed:
    """The network that keeps these units, and what a repair needs to know of it.

    Args:
        model: the dense network; not changed.
        structure: its layers.
        selection: for every layer the units that stay, ascending.
        means: what is added where a branch is gone; see `without`.
    """
    positions = structure.positions(selection)
    gone = structure.gone([len(keep) for keep in selection])
    roles = {(part.parameter, part.dim): part.role for layer in structure.layers for part in layer.slices}

    def along(*wanted: str) -> dict[str, NDArray[np.int64]]:
        found = {
            name: at
            for (name, dim), at in positions.items()
            if roles.get((name, dim)) in wanted and name.endswith(".weight")
        }
        return {name.removesuffix(".weight"): at for name, at in found.items()}

    columns = along("in")
    named = {branch.norm or branch.exit: (f"{branch.exit}.mean", 0) for branch in gone}
    constants = {name: positions[key] for name, key in named.items() if key in positions}
    return Compressed(
        model=shrink(model, structure, selection, means).eval(),
        recipe={
            "kept": [{"tensor": name, "dim": dim, "positions": at.tolist()} for (name, dim), at in positions.items()],
            **({"gone": [{"exit": b.exit, "norm": b.norm, "inside": list(b.inside)} for b in gone]} if gone else {}),
        },
        columns=columns,
        rows=along("out", "through") | constants,
        cut=frozenset(name.rpartition(".")[0] for (name, dim) in positions if roles.get((name, dim)) == "in"),
    )


def _structure(context: Context) -> ChannelStructure:
    return cast(ChannelStructure, context.structure)


def _means(context: Context, kept: Kept) -> Means | None:
    """Of the branches, where one goes."""
    return mean_outputs(context) if context.structure.gone(kept) else None


METHODS.register("channels")(Channels())
