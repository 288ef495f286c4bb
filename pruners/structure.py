"""What a plan chooses: a network's layers, how many units of each may be kept, and what that costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..training.inputs import InputShape

Kept = NDArray[np.int64]
Floats = NDArray[np.float64]


class PlanError(ValueError):
    """A plan, a sparsity or a budget that does not fit the network; the message names value and remedy."""


@dataclass(frozen=True)
class Layer:
    """One step of the walk: something of which a part may be kept.

    Attributes:
        name: of the layer.
        units: of the dense network.
        choices: how many of them may be kept, ascending; the last is `units`. Empty stands for 1 … units.
        members: everything that is coupled to it, as the fingerprint of a plan knows it.
        parameters: names of the tensors that the units are parts of.
        consumers: modules whose outputs change where units go.
        max_sparsity: the most of it that may go, where that is not for all layers alike; none where it is.
        probes: sparsities at which it is measured how far the outputs move for what its consumers lose.
        like: another layer, of the same consumers, of which that is measured for this one too; none for itself.
    """

    name: str
    units: int
    choices: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    max_sparsity: float | None = None
    probes: tuple[float, ...] = (0.5,)
    like: str = ""

    def __post_init__(self) -> None:
        choices = tuple(self.choices) or tuple(range(1, self.units + 1))
        if choices[-1] != self.units or choices[0] < 0 or any(a >= b for a, b in pairwise(choices)):
            raise PlanError(f"layer {self.name}: choices must rise from 0 or more to its {self.units} units: {choices}")
        object.__setattr__(self, "choices", choices)

    @cached_property
    def levels(self) -> Kept:
        """(choices,) the choices as an array."""
        return np.array(self.choices, dtype=np.int64)


@dataclass(frozen=True)
class Branch:
    """A residual branch that may go altogether; no two have a module in common.

    Attributes:
        layers: names of those inside: where one of them keeps 0 units, the branch is gone.
        exit: its last layer, where its mean output comes out then.
        norm: the batch norm behind that, if any.
        inside: modules with weights in front of the exit.
        modules: all that the forward calls for the branch alone.
    """

    layers: tuple[str, ...]
    exit: str
    norm: str | None
    inside: tuple[str, ...]
    modules: frozenset[str]


class CostModel(Protocol):
    """A cost as a function of what is kept; between a layer's choices it never falls where the layer keeps more."""

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) units kept, integer or real → (…) cost."""
        ...


@dataclass(frozen=True)
class Structure:
    """A network's layers in the order of the walk, and its costs as functions of what they keep.

    Attributes:
        method: that found them.
        layers: what may be compressed.
        costs: by kind (`flops`: multiply-accumulates an image, `params`, `latency`: nanoseconds a batch, `size`: bytes
            stored, `bops`: bit operations, …); given, so that a method, a runtime or a user may add one.
        ignored: every layer that is left whole, with the reason; one that is coupled to another names it.
        shapes: every parameter's dense shape, by name.
        input_shape: (C, H, W) of one image, or what `shape_of` says of other inputs.
        branches: that go where one of their layers keeps 0 units.
        first_units: (network, structure, units kept) → a network of that size, whichever units it holds, for a latency
            table to time; none where keeping less makes no dense kernel faster.
        apart: (layers,) the most units at which others stand in a layer's place, in a module of its name, so that what
            it takes depends on what itself keeps alone; () where layers change each other's sizes.
        in_turn: whether what a layer's steps save depends on what other layers keep, as products do.
    """

    method: str
    layers: tuple[Layer, ...]
    costs: Mapping[str, CostModel]
    ignored: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    input_shape: InputShape
    branches: tuple[Branch, ...] = ()
    first_units: Callable[[nn.Module, Structure, Kept], nn.Module] | None = None
    apart: tuple[int, ...] = ()
    in_turn: bool = False

    @cached_property
    def units(self) -> Kept:
        """(layers,) units of the dense network."""
        return np.array([layer.units for layer in self.layers], dtype=np.int64)

    def index(self, name: str) -> int:
        """Position of a layer in the walk."""
        return next(i for i, layer in enumerate(self.layers) if layer.name == name)

    def gone(self, kept: Kept | Sequence[int]) -> list[Branch]:
        """The branches that are not there where so many units (layers,) are kept."""
        counts = {layer.name: int(count) for layer, count in zip(self.layers, kept, strict=True)}
        return [branch for branch in self.branches if any(not counts[name] for name in branch.layers)]

    def settled(self, kept: Kept) -> Kept:
        """(layers,) the same plan, with nothing kept of the other layers of a branch that is gone."""
        out = {name for branch in self.gone(kept) for name in branch.layers}
        return np.array([0 if layer.name in out else n for layer, n in zip(self.layers, kept, strict=True)], np.int64)

    def cost(self, kind: str, kept: Kept | Sequence[int]) -> int:
        """What a network costs that keeps so many units (layers,), counted with integers."""
        total: float = self.costs[kind](np.asarray(kept, dtype=np.int64))
        return round(total)

    def relaxed_cost(self, kind: str, kept: Floats) -> float:
        """The cost as if units could be kept in parts."""
        return float(self.costs[kind](kept))

    def fraction(self, kind: str, kept: Kept | Sequence[int]) -> float:
        """The cost as a fraction of the dense network's."""
        return self.cost(kind, kept) / self.cost(kind, self.units)

    def fractions(self, kept: Kept | Sequence[int]) -> dict[str, float]:
        """The fraction of every kind of cost that is counted here, by kind."""
        return {kind: self.fraction(kind, kept) for kind in self.costs}

    def with_cost(self, kind: str, cost: CostModel) -> Structure:
        """The same, counted in one more way. Where keeping more of a layer costs less, keeping less is no choice.

        Raises:
            PlanError: no layer has a choice left.
        """
        found = replace(self, costs={**self.costs, kind: cost})
        layers = []
        for layer, costs in zip(self.layers, found.choice_costs(kind), strict=True):
            whole = np.rint(costs)  # as they are counted
            cheapest = np.minimum.accumulate(whole[::-1])[::-1]
            layers.append(replace(layer, choices=tuple(layer.levels[whole <= cheapest].tolist())))
        if all(len(layer.choices) == 1 for layer in layers):
            raise PlanError(f"budget.{kind}: of no layer does keeping less save {kind} here; budget flops or params")
        return replace(found, layers=tuple(layers))

    def choice_costs(self, kind: str) -> list[Floats]:
        """For every layer, (choices,), what the network costs at each of its choices, the others whole."""
        if kind not in self._choice_costs:
            found = []
            for index, layer in enumerate(self.layers):
                alone = np.tile(self.units, (len(layer.choices), 1))
                alone[:, index] = layer.levels
                found.append(np.asarray(self.costs[kind](alone), dtype=np.float64))
            self._choice_costs[kind] = found
        return self._choice_costs[kind]

    @cached_property
    def _choice_costs(self) -> dict[str, list[Floats]]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, units, coupling and shapes: equal for networks that a plan fits alike."""
        text = json.dumps([[layer.name, layer.units, list(layer.members)] for layer in self.layers])
        shapes = json.dumps(sorted((name, list(shape)) for name, shape in self.shapes.items()))
        return hashlib.sha256((text + shapes).encode()).hexdigest()[:16]

    def check_kept(self, kept: Sequence[int] | Kept) -> Kept:
        """What is kept, as an array.

        A number between two choices is taken: a plan may have been made by hand, or with other choices.

        Raises:
            PlanError: wrong number of layers, or a number outside [least choice, units].
        """
        array = np.asarray(kept, dtype=np.int64)
        if array.shape != (len(self.layers),):
            raise PlanError(f"{array.size} numbers of units kept for a network of {len(self.layers)} layers")
        for layer, count in zip(self.layers, array, strict=True):
            least = min(1, layer.choices[0])
            if not least <= count <= layer.units:
                hint = "" if count else "; with layers.branches=true a residual branch may go altogether"
                raise PlanError(f"layer {layer.name}: {count} units kept is outside {least} … {layer.units}{hint}")
        return array

    def snap(self, index: int, wish: float) -> int:
        """The choice of a layer that is nearest to a wished number of units; of two, the even-numbered as `round`."""
        levels = self.layers[index].levels
        if len(levels) == levels[-1] - levels[0] + 1:
            return int(np.clip(round(wish), levels[0], levels[-1]))
        return int(levels[np.abs(levels - wish).argmin()])
