"""Two methods in one search: the layers of both in one walk, one budget, one loss model (`method: [channels, bits]`).

One of them makes the network smaller (`Leader`); the other does its own to what is left (`Follower`). What a plan costs
is that of the second in a network that the first has cut: the bytes of a tensor are outputs × inputs × bits. What it
loses is the sum of what both lose, each in the same unit: distance of the outputs, by lost output of the consumers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..configs.registry import joined, split
from ..configs.schema import LayersConfig
from ..networks.copying import rebuilt
from ..networks.factors import as_ones, factorised_names, unfactorised
from ..storage.cache import Store
from ..storage.reading import validated
from ..training.inputs import InputShape
from .context import Context
from .costs.measures import JointCost
from .method import METHODS, Compressed, Follower, Leader, Method, Solve
from .repair.gram import NarrowedMoments
from .repair.solve import ridge_step
from .structure import CostModel, Floats, Kept, Layer, PlanError, Structure


class _Recipe(BaseModel):
    """The leader's recipe and the follower's; which modules were two layers before."""

    model_config = ConfigDict(extra="forbid")

    first: dict[str, Any]
    then: dict[str, Any]
    two: list[str]


@dataclass(frozen=True, kw_only=True)
class JointLayer(Layer):
    """A layer of one of the methods, under a name that says of which.

    Attributes:
        part: which method's, 0 or 1.
        own: as that has it.
    """

    part: int
    own: Layer


@dataclass(frozen=True, kw_only=True)
class JointStructure(Structure):
    """The layers of both methods, each tensor's one after the other.

    Attributes:
        parts: what each of them finds.
    """

    parts: tuple[Structure, Structure]

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each method's layers in the walk, in the method's own order."""
        of = np.array([layer.part for layer in self.layers if isinstance(layer, JointLayer)])
        return np.flatnonzero(of == 0), np.flatnonzero(of == 1)


class Joint:
    """A method of two. In whichever order they are named, the leader goes first.

    Attributes:
        members: the two, as they are named.
        leader: which of them makes the network smaller.
        follower: which does its own to what is left.
    """

    def __init__(self, members: Sequence[Method]):
        """Of two methods.

        Raises:
            ValueError: they cannot be one, in a line.
        """
        names = [method.name for method in members]
        said = f"method: [{', '.join(names)}]"
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{said} has {twice} twice: name it once")
        leaders = [i for i, method in enumerate(members) if isinstance(method, Leader)]
        followers = [i for i, method in enumerate(members) if isinstance(method, Follower)]
        if (len(members), len(leaders), len(followers)) != (2, 1, 1):
            first, second = (
                " or ".join(name for name in METHODS if isinstance(METHODS[name], kind)) for kind in (Leader, Follower)
            )
            raise ValueError(
                f"{said} cannot be one search, which has {first}, and {second}: search with one, apply its plan, and "
                "search again on that network (network.weights)"
            )
        self.members = tuple(members)
        self.leader, self.follower = leaders[0], followers[0]
        self.name = joined(names)
        self.unit = " or ".join(method.unit for method in members)
        self.criterion = joined(method.criterion for method in members)
        self.max_sparsity = max(method.max_sparsity for method in members)

    def find(self, model: nn.Module, input_shape: InputShape, config: LayersConfig) -> JointStructure:
        """The layers of both; a name in `config` that ends in `.METHOD` is for that method alone.

        Raises:
            ValueError: see the methods' own.
            PlanError: one of them finds nothing, or the config names what neither knows.
        """
        told = [self._told(config, i) for i in range(len(self.members))]
        parts = [method.find(model, input_shape, said) for method, said in zip(self.members, told, strict=True)]
        alone = {layer.name: why for layer in parts[self.follower].layers if (why := getattr(layer, "alone", ""))}
        if alone:
            said = told[self.follower]
            left = said.model_copy(update={"ignore": [*said.ignore, *alone]})
            found = self.members[self.follower].find(model, input_shape, left)
            parts[self.follower] = replace(found, ignored={**found.ignored, **alone})
        structure = JointStructure(
            method=self.name,
            layers=self._together(parts, config),
            costs={},
            ignored={
                f"{name}.{method.name}": reason
                for method, part in zip(self.members, parts, strict=True)
                for name, reason in part.ignored.items()
            },
            shapes=parts[self.leader].shapes,
            input_shape=parts[self.leader].input_shape,
            in_turn=True,
            parts=(parts[0], parts[1]),
        )
        return replace(structure, costs=self._costs(structure))

    def _together(self, parts: Sequence[Structure], config: LayersConfig) -> tuple[JointLayer, ...]:
        """All layers as the walk comes to them: by the first of their tensors in the network, the leader's before the
        follower's, and otherwise as the methods have them."""
        order = {name: position for position, name in enumerate(parts[self.leader].shapes)}
        found: list[tuple[tuple[int, bool], JointLayer]] = []
        for i, part in enumerate(parts):
            reached = 0
            for layer in part.layers:
                reached = max(reached, order[layer.parameters[0]])
                found.append(((reached, i != self.leader), self._named(layer, i, config)))
        return tuple(layer for _, layer in sorted(found, key=lambda entry: entry[0]))

    def _named(self, layer: Layer, i: int, config: LayersConfig) -> JointLayer:
        """A method's layer under the name that says of which."""
        method = self.members[i]
        return JointLayer(
            name=f"{layer.name}.{method.name}",
            units=layer.units,
            choices=layer.choices,
            members=(method.name, *layer.members),
            parameters=layer.parameters,
            consumers=layer.consumers,
            max_sparsity=None if config.max_sparsity else method.max_sparsity,
            probes=layer.probes,
            like=layer.like and f"{layer.like}.{method.name}",
            part=i,
            own=layer,
        )

    def _costs(self, structure: JointStructure) -> dict[str, CostModel]:
        leader, follower = structure.parts[self.leader], structure.parts[self.follower]
        method: Any = self.members[self.leader]
        measured = method.measured(leader, [*dict.fromkeys(layer.parameters[0] for layer in follower.layers)])
        places = structure.places[self.leader], structure.places[self.follower]
        costs: Mapping[str, Any] = follower.costs
        return {kind: JointCost(cost, measured, *places) for kind, cost in costs.items()}

    def _told(self, config: LayersConfig, i: int) -> LayersConfig:
        """What the user says of one method's layers; what is for another alone is left out."""
        end, others = f".{self.members[i].name}", [method for j, method in enumerate(self.members) if j != i]
        theirs = tuple(f".{method.name}" for method in others)

        def mine(names: Sequence[str]) -> list[str]:
            return [name.removesuffix(end) for name in names if not name.endswith(theirs)]

        steps = config.round_to
        told: dict[str, Any] = {"ignore": mine(config.ignore), "tie": [mine(group) for group in config.tie]}
        if not isinstance(steps, int):
            told["round_to"] = {mine([name])[0]: step for name, step in steps.items() if mine([name])}
        default = LayersConfig()
        foreign: list[str] = [key for method in others for key in getattr(method, "own_settings", ())]
        return config.model_copy(update={**told, **{key: getattr(default, key) for key in foreign}})

    def check_criterion(self, name: str) -> None:
        """Raises ValueError where it is not one of each method, joined."""
        names = split(name)
        if len(names) != len(self.members):
            raise ValueError(f"criterion = {name!r}: {self.name} has one of each: [{', '.join(split(self.criterion))}]")
        for method, own in zip(self.members, names, strict=True):
            method.check_criterion(own)

    def curves(self, context: Context) -> list[Floats]:
        """Of both: the loss of a consumer's output in either case."""
        found: list[Floats] = [np.empty(0)] * len(context.structure.layers)
        for i, places in enumerate(_structure(context).places):
            curves = self.members[i].curves(self._part(context, i))
            for place, curve in zip(places, curves, strict=True):
                found[place] = curve
        return found

    def sizes(self, context: Context, layer: Layer) -> Floats:
        """Of the method that the layer is of."""
        assert isinstance(layer, JointLayer)
        return self.members[layer.part].sizes(self._part(context, layer.part), layer.own)

    def features(self, context: Context, layer: Layer) -> Mapping[str, float]:
        """Of the method that the layer is of."""
        assert isinstance(layer, JointLayer)
        return self.members[layer.part].features(self._part(context, layer.part), layer.own)

    def apply(self, context: Context, kept: Kept) -> Compressed:
        """The leader's network, and what the follower makes of that, by the moments of the inputs that are left."""
        cut, then, left = self._cut(context, kept)
        rest = self.members[self.follower].apply(then, left)
        return Compressed(
            model=rest.model,
            recipe={"first": cut.recipe, "then": rest.recipe, "two": factorised_names(context.model)},
            columns=cut.columns,
            rows=cut.rows,
            cut=cut.cut | rest.cut,
            solve=JointSolve(rest.cut, rest.solve, cut.solve) if rest.cut else cut.solve,
            hold=rest.hold or cut.hold,
        )

    def masked(self, context: Context, kept: Kept) -> nn.Module:
        """The leader's masked network, and in it what the follower made of the weights that are left."""
        cut, then, left = self._cut(context, kept)
        method: Any = self.members[self.follower]
        rest = method.apply(then, left)
        first = kept[_structure(context).places[self.leader]]
        masked = self.members[self.leader].masked(self._part(context, self.leader), first)
        masked = unfactorised(method.rebuild(masked, rest.recipe), context.model)
        before, after = cut.model.state_dict(), unfactorised(rest.model, cut.model).state_dict()

        def put(name: str, tensor: Tensor) -> Tensor:
            same = name not in after or (name in before and torch.equal(before[name], after[name]))
            return tensor if same else _into(tensor, after[name], cut, name.rpartition(".")[0])

        return rebuilt(masked, put)

    def rebuild(self, model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
        """By the leader's recipe, then the follower's; of a network that was made so before, what was cut further.

        Raises:
            ValueError: it has not both of them, or see the methods' own.
        """
        told = validated(_Recipe, recipe, f"this is no recipe of {self.name}")
        whole = as_ones(model, [name for name in factorised_names(model) if name not in told.two])
        small = self.members[self.leader].rebuild(whole, told.first)
        return self.members[self.follower].rebuild(small, told.then)

    def _part(self, context: Context, i: int) -> Context:
        """The dense network as one of the methods is shown it; the same whenever it is asked for."""
        known: dict[int, Context] = context.memo.setdefault("joint", {})
        if i not in known:
            criterion = split(context.ranking_criterion)[i]
            known[i] = replace(context, structure=_structure(context).parts[i], criterion=criterion)
        return known[i]

    def _cut(self, context: Context, kept: Kept) -> tuple[Compressed, Context, Kept]:
        """What the leader makes, the context in which the follower goes on, and what that keeps."""
        places = _structure(context).places
        first, then = self._part(context, self.leader), self._part(context, self.follower)
        cut = self.members[self.leader].apply(first, kept[places[self.leader]])
        if cut.cut or cut.rows or cut.columns:
            method: Any = self.members[self.follower]
            shapes = {name: tuple(parameter.shape) for name, parameter in cut.model.named_parameters()}
            then = replace(
                then,
                model=cut.model,
                structure=method.narrowed(then.structure, shapes),
                store=Store(),
                given=replace(then.moments, inputs=NarrowedMoments(then.moments.inputs, cut, context.model)),
            )
        return cut, then, kept[places[self.follower]]


@dataclass(frozen=True)
class JointSolve:
    """Each module's step by the method that changed it last; see `Solve`.

    Attributes:
        followed: modules that the follower changed.
        then: its own; none for any step.
        first: the leader's.
    """

    followed: frozenset[str]
    then: Solve | None
    first: Solve | None

    def __call__(self, name: str, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """(groups, p, q) the step."""
        solve = self.then if name in self.followed else self.first
        return solve(name, gram, cross, ridge) if solve else ridge_step(gram, cross, ridge)


def _structure(context: Context) -> JointStructure:
    structure = context.structure
    if not isinstance(structure, JointStructure):
        raise PlanError(f"these are layers of {structure.method}, not of two methods")
    return structure


def _into(tensor: Tensor, small: Tensor, cut: Compressed, module: str) -> Tensor:
    """A dense tensor with a smaller one in the places that are left of it."""
    rows, columns = cut.rows.get(module), cut.columns.get(module)
    if tensor.shape == small.shape:
        return small
    found = tensor.clone()
    at = [torch.arange(size) for size in tensor.shape[:2]]
    for dim, stay in enumerate((rows, columns)):
        if stay is not None and dim < tensor.dim():
            at[dim] = torch.from_numpy(stay)
    places = at[0] if tensor.dim() == 1 else (at[0][:, None], at[1][None])
    found[places] = small
    return found


METHODS.join = Joint
