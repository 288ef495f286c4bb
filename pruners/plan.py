"""The ratio plan: layer name → sparsity, with what is needed to check it against a network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..configs import CostKind, did_you_mean
from ..configs.scalars import FileName
from ..configs.schema import ObjectiveConfig
from ..storage.files import package_versions, write_json
from ..storage.reading import explain, place_of, read_json, shown
from .method import METHODS
from .structure import PlanError, Structure

SCHEMA_VERSION = 2
PLAN_NAME = "plan.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerPlan(_Model):
    """One layer's share of the plan.

    Attributes:
        name: the layer's, as `Structure` names it.
        sparsity: fraction of its units removed, in [0, 1].
        kept: units kept.
        units: of the dense network.
        members: everything coupled to it.
    """

    name: str
    sparsity: float = Field(ge=0.0, le=1.0)
    kept: int = Field(ge=0)
    units: int = Field(ge=1, le=2**53)
    members: list[str]

    @model_validator(mode="after")
    def _consistent(self) -> LayerPlan:
        if self.kept != round((1.0 - self.sparsity) * self.units):
            raise ValueError(
                f"layer {self.name}: sparsity {self.sparsity:g} of {self.units} units does not keep {self.kept}"
            )
        return self


Asked = Annotated[float, Field(gt=0.0, le=1.0)]


class PlanBudget(_Model):
    """What was asked: the most the plan may cost, as fractions of the dense network.

    Attributes:
        kind: of the budget, or of the first.
        fraction: of it.
        besides: further budgets that the plan meets, kind → fraction; not written where there are none.
    """

    kind: CostKind
    fraction: Asked
    besides: dict[CostKind, Asked] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "besides" or value}

    @classmethod
    def of(cls, fractions: Mapping[CostKind, float]) -> PlanBudget:
        """Of kind → fraction."""
        (kind, fraction), *others = fractions.items()
        return cls.model_validate({"kind": kind, "fraction": fraction, "besides": dict(others)})

    @property
    def fractions(self) -> dict[CostKind, float]:
        """All of them: kind → fraction."""
        return {self.kind: self.fraction, **self.besides}

    @property
    def overrides(self) -> list[str]:
        """For a config that is to ask for the same."""
        return [f"budget.{kind}={fraction!r}" for kind, fraction in self.fractions.items()]

    def __str__(self) -> str:
        return " and ".join(f"{kind} {fraction:g}" for kind, fraction in self.fractions.items())


class Provenance(_Model):
    """Who made the plan: allocator, seed, candidates evaluated, package versions."""

    allocator: FileName
    seed: int
    candidates: int = Field(ge=0)
    versions: dict[str, str]


class RatioPlan(_Model):
    """A plan, as `plan.json` holds it. It needs neither the code nor the config that made it.

    Attributes:
        architecture: the network's name in the config.
        fingerprint: of its layers' names, kept, coupling and shapes.
        method: that it is for; says what a unit is.
        criterion: ranks the units inside a layer.
        objective: that it was found for.
        budget: asked.
        cost: reached, fractions kept, by kind; of the latency, by the table of the machine that the plan was made on.
        layers: in the order of the walk.
        figures: what it was chosen by (`search_accuracy`, `reconstruction_loss`, `reward`).
        provenance: who made it.
    """

    schema_version: Literal[2] = 2
    architecture: str
    fingerprint: str
    method: str = "channels"
    criterion: str
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: PlanBudget
    cost: dict[str, float]
    layers: list[LayerPlan] = Field(min_length=1)
    figures: dict[str, float] = Field(default_factory=dict)
    provenance: Provenance

    @model_validator(mode="after")
    def _each_once(self) -> RatioPlan:
        names = [layer.name for layer in self.layers]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"layer {twice[0]} is there twice")
        return self

    @classmethod
    def make(
        cls,
        structure: Structure,
        kept: NDArray[np.int64],
        *,
        architecture: str,
        criterion: str,
        objective: ObjectiveConfig | None = None,
        budget: tuple[str, float],
        besides: Mapping[CostKind, float] | None = None,
        figures: Mapping[str, float],
        allocator: str,
        seed: int,
        candidates: int,
    ) -> RatioPlan:
        """The plan that keeps so many units (layers,) of this network."""
        kept = structure.check_kept(kept)
        return cls(
            architecture=architecture,
            fingerprint=structure.fingerprint,
            method=structure.method,
            criterion=criterion,
            objective=objective or ObjectiveConfig(),
            budget=PlanBudget.model_validate({"kind": budget[0], "fraction": budget[1], "besides": besides or {}}),
            cost=structure.fractions(kept),
            layers=[
                LayerPlan(
                    name=layer.name,
                    sparsity=1.0 - int(count) / layer.units,
                    kept=int(count),
                    units=layer.units,
                    members=list(layer.members),
                )
                for layer, count in zip(structure.layers, kept, strict=True)
            ],
            figures=dict(figures),
            provenance=Provenance(allocator=allocator, seed=seed, candidates=candidates, versions=package_versions()),
        )

    @classmethod
    def load(cls, path: str | Path) -> RatioPlan:
        """Read `plan.json`, or the one inside a run folder.

        Raises:
            PlanError: no such file, or not a plan; the message names the first fault.
        """
        path = plan_path(path)
        try:
            tree = read_json(path)
        except ValueError as error:
            raise PlanError(f"{error}: write it anew, or restore it") from None
        version = tree.get("schema_version", SCHEMA_VERSION) if isinstance(tree, dict) else SCHEMA_VERSION
        if version == 1:
            tree = _from_schema_1(tree)
        elif version != SCHEMA_VERSION:
            raise PlanError(
                f"{path} has schema version {shown(version)}, this secateur reads 1 and {SCHEMA_VERSION}: upgrade"
            )
        try:
            return cls.model_validate(tree, strict=True)
        except ValidationError as error:
            raise PlanError(f"{path} is not a ratio plan: {_explain(error, tree)}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    @property
    def kept(self) -> NDArray[np.int64]:
        """(layers,) units kept."""
        return np.array([layer.kept for layer in self.layers], dtype=np.int64)

    @property
    def sparsities(self) -> dict[str, float]:
        """Layer name → sparsity."""
        return {layer.name: layer.sparsity for layer in self.layers}

    def check(self, structure: Structure) -> None:
        """Make sure that the plan was made for this network.

        Raises:
            PlanError: it was not; the first layer that differs is named.
        """
        self.check_method(structure.method)
        theirs = {layer.name: layer for layer in structure.layers}
        for layer in self.layers:
            if layer.name not in theirs:
                reason = structure.ignored.get(layer.name)
                why = f"here it is left whole: {reason}" if reason else "this network has no such layer"
                raise PlanError(
                    f"the plan ({self.architecture}) cuts layer {layer.name!r}; {why}{did_you_mean(layer.name, theirs)}"
                )
            mine = theirs[layer.name]
            if mine.units != layer.units:
                raise PlanError(
                    f"the plan is for another network: layer {layer.name} has {layer.units} {self.unit} in the plan "
                    f"({self.architecture}), {mine.units} here"
                )
            if list(mine.members) != layer.members:
                pairs = zip_longest(mine.members, layer.members)
                odd = next(theirs or ours for ours, theirs in pairs if ours != theirs)
                where = f"layer {layer.name} is coupled differently here (at {shown(odd)[1:-1]})"
                raise PlanError(f"the plan is for another network: {where}")
        names = [layer.name for layer in structure.layers]
        if names != [layer.name for layer in self.layers]:
            missing = [name for name in names if name not in self.sparsities]
            what = f"layer {missing[0]} is not in the plan" if missing else "its layers come in another order"
            raise PlanError(f"the plan ({self.architecture}) is for another network: {what}")
        if structure.fingerprint != self.fingerprint:
            raise PlanError(
                f"the plan ({self.architecture}) is for another network: its layers agree, but a tensor outside them "
                "differs in shape (another number of classes?)"
            )
        structure.check_kept(self.kept)

    @property
    def unit(self) -> str:
        """What its layers count, in the plural."""
        return METHODS[self.method].unit if self.method in METHODS else "units"

    def check_method(self, method: str) -> None:
        """Make sure that the plan is of this method.

        Raises:
            PlanError: it is of another one.
        """
        if self.method != method:
            raise PlanError(
                f"the plan ({self.architecture}) prunes {self.method}, not {method}: set method: {self.method}"
            )


def _from_schema_1(tree: Any) -> Any:
    """What version 0.1 wrote, in today's words; what it could not have written is left for the check to name."""
    tree = {**tree, "schema_version": SCHEMA_VERSION}
    methods = {"channel": "channels", "magnitude": "weights"}
    method = tree.get("method", "channel")
    tree["method"] = methods.get(method, method) if isinstance(method, str) else method
    words = {"width": "kept", "dense_width": "units"}
    if isinstance(tree.get("layers"), list):
        tree["layers"] = [
            {words.get(key, key): value for key, value in layer.items()} if isinstance(layer, dict) else layer
            for layer in tree["layers"]
        ]
    return tree


def plan_path(path: str | Path) -> Path:
    """The plan file itself, given it or its run folder.

    Raises:
        PlanError: there is none.
    """
    path = Path(path)
    file = path / PLAN_NAME if path.is_dir() else path
    if not file.is_file():
        raise PlanError(f"no plan at {path}: give a {PLAN_NAME}, or a folder that `secateur train` wrote")
    return file


def _explain(error: ValidationError, tree: Any) -> str:
    fault = error.errors()[0]
    location = list(fault["loc"])
    if fault["type"] == "value_error":  # names its layer itself
        return fault["msg"].removeprefix("Value error, ")
    if len(location) < 2 or location[0] != "layers":
        return explain(fault, None if location else "the file")
    entry = tree["layers"][location[1]]
    name = entry.get("name") if isinstance(entry, dict) else None
    return explain(fault, place_of([f"layer {name if isinstance(name, str) else location[1]}", *location[2:]]))
