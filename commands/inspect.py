"""`secateur inspect`: a network's layers, what they cost, what is coupled with what, and what budgets can ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..configs import Config, ConfigError, amounts, builtin_configs, did_you_mean, load_config
from ..networks import registered_networks
from ..networks.inference import example_images
from ..networks.registry import INPUT_SHAPES
from ..networks.world import undisturbed, use_threads
from ..pruners import METHODS, Budget, Layer, Structure
from ..pruners.costs.counts import Operation, count_operations
from ..pruners.saved import NETWORK_NAME, load
from ..reports.progress import Reporter
from ..reports.tables import Figures
from ..storage.folders import CONFIG_NAME
from ..storage.reading import shown
from ..training.inputs import InputShape, as_json, told
from .outline import find_structure, most_sparsity
from .resolve import Given
from .session import Session

LIBRARIES = {"torchvision": (3, 224, 224), "timm": (3, 224, 224)}  # networks of ImageNet's 1,000 classes
CLASSES = dict.fromkeys(LIBRARIES, 1000)
TITLES = {"flops": "FLOPs", "params": "params"}
OWN = ("flops", "params")  # kinds of which it is known what each tensor costs


@dataclass(frozen=True)
class LayerRow:
    """A layer: what one decision of a plan is about.

    Attributes:
        name: of the layer.
        units: of the network as it is.
        choices: how many of them may be kept.
        least: the smallest choice that `layers.bounds` and `layers.max_sparsity` allow.
        most: the largest.
        own: what its tensors cost, by kind (FLOPs: multiply-accumulates an image): of flops and params.
        unit: what one unit less saves on average, in all tensors that it is part of, the other layers whole, by kind.
        coupled: modules of which units go with the layer's.
        consumers: modules of which inputs go.
    """

    name: str
    units: int
    choices: tuple[int, ...]
    least: int
    most: int
    own: Mapping[str, int]
    unit: Mapping[str, float]
    coupled: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class BudgetRange:
    """What a budget of one kind can ask for.

    Attributes:
        least: the smallest fraction that can be met.
        most: the fraction that is kept where nothing but `layers.bounds` is asked: 1 without bounds.
        least_amount: the same in multiply-accumulates an image, parameters, or nanoseconds a batch.
        whole: the network as it is.
    """

    least: float
    most: float
    least_amount: int
    whole: int


@dataclass(frozen=True)
class Inspection:
    """A network as a plan sees it.

    Attributes:
        network: its name.
        method: that found the layers.
        unit: what is counted, in the plural.
        input_shape: (C, H, W) of one image, or what `shape_of` says of other inputs.
        layers: in the order of the walk.
        budgets: by kind.
        left_whole: whatever is not cut, with the reason.
        left_flops: of the operations that belong to no layer.
    """

    network: str
    method: str
    unit: str
    input_shape: InputShape
    layers: Sequence[LayerRow]
    budgets: Mapping[str, BudgetRange]
    left_whole: Mapping[str, str]
    left_flops: int

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**asdict(self), "input_shape": as_json(self.input_shape)}

    def tables(self) -> list[Figures]:
        """For a person: the layers, then the budgets."""
        return [_layer_table(self), _budget_table(self)]

    def lines(self) -> list[str]:
        """For a person: what is cut with what, what is left whole and why."""
        together = [
            f"  {row.name}: {', '.join(parts)}"
            for row in self.layers
            if (parts := [*row.coupled, *(f"inputs of {name}" for name in row.consumers)])
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_whole.items():
            reasons.setdefault(reason, []).append(name)
        whole = [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        left = f"left whole, with {_amount('flops', self.left_flops)} FLOPs:"
        return [*(["cut together:", *together] if together else []), *([left, *whole] if whole else [])]


@undisturbed()
def inspect(
    session: Session | Given = None, *, input_shape: InputShape | None = None, latency: bool = False
) -> Inspection:
    """A network's layers with their units, choices and costs, and the range of every budget; nothing is trained.

    Args:
        session: a session; a config, its name or its file; the name of a network (`torchvision:resnet18`), with random
            weights; a run folder; or a folder that `apply` wrote, of which the smaller network is looked at.
        input_shape: (C, H, W) of one image; none is that of the config's images, of ImageNet's for networks of
            torchvision and timm.
        latency: whether to measure it on this machine, which takes seconds to minutes.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; nothing to compress; a latency that cannot be measured.
    """
    session = session if isinstance(session, Session) else session_of(session)
    session = session.beside(spends=False)
    config = session.config
    use_threads(config.threads)
    if input_shape is None and config.data is None and config.network is not None:
        input_shape = _usual_shape(config.network.name)
    model, shape = session.outline(input_shape)
    structure = find_structure(config, model, shape, timed=latency, bar=session.reporter.bar)
    found = _inspection(config, structure, count_operations(model, example_images(model, shape)))
    for table in found.tables():
        session.reporter.show(table)
    for line in found.lines():
        session.reporter.say(line)
    return found


def session_of(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    trust_code: bool = False,
    reporter: Reporter | None = None,
) -> Session:
    """A session of whatever can be inspected; see `inspect`.

    Raises:
        ConfigError: there is no config, folder or network of that name.
        ValueError, FileNotFoundError: see `Session` and `load`.
    """
    config: Given = given
    model: nn.Module | None = None
    if isinstance(given, str | Path) and Path(given).is_dir():
        config = Path(given) / CONFIG_NAME
        if not config.is_file():
            raise ConfigError(f"{given} is no run folder: no {CONFIG_NAME} in it")
        if (Path(given) / NETWORK_NAME).is_file():
            model = load(given, trust_code=trust_code)
    elif isinstance(given, str) and given not in builtin_configs() and not Path(given).exists():
        config = _named(given, overrides)
        overrides = ()
    return Session(config, model=model, overrides=overrides, reporter=reporter, trust_code=trust_code)


def _named(name: str, overrides: Sequence[str]) -> Config:
    """A config for a network that is known by its name alone."""
    if ":" not in name and name not in registered_networks():
        known = [*builtin_configs(), *registered_networks()]
        raise ConfigError(
            f"no config, run folder or network {shown(name)}: a network is one of {', '.join(registered_networks())}, "
            f"torchvision:NAME, timm:NAME or package.module:callable{did_you_mean(name, known)}"
        )
    classes = CLASSES.get(name.partition(":")[0], 10)
    network = {"name": name, "num_classes": classes, "weights": "random"}  # never read: none are needed
    tree = {"name": name.replace("/", "-"), "network": network, "budget": {"flops": 1.0}}
    return load_config(Config.model_validate(tree), overrides)


def _usual_shape(name: str) -> InputShape | None:
    return INPUT_SHAPES.get(name) or LIBRARIES.get(name.partition(":")[0])


def _inspection(config: Config, structure: Structure, operations: Sequence[Operation]) -> Inspection:
    budget = Budget(structure, "flops", 1.0, most_sparsity(config), config.layers.bounds)
    cut = {tensor for layer in structure.layers for tensor in layer.parameters}
    rows = zip(structure.layers, budget.least.tolist(), budget.most.tolist(), strict=True)
    return Inspection(
        network=config.network.name if config.network is not None else config.name,
        method=structure.method,
        unit=METHODS[structure.method].unit,
        input_shape=structure.input_shape,
        layers=[_row(structure, layer, least, most, operations) for layer, least, most in rows],
        budgets={
            kind: BudgetRange(
                structure.fraction(kind, budget.least),
                structure.fraction(kind, budget.most),
                structure.cost(kind, budget.least),
                structure.cost(kind, structure.units),
            )
            for kind in structure.costs
        },
        left_whole=dict(structure.ignored),
        left_flops=sum(op.flops for op in operations if op.parameter not in cut),
    )


def _row(structure: Structure, layer: Layer, least: int, most: int, operations: Sequence[Operation]) -> LayerRow:
    index = structure.index(layer.name)
    costs = {kind: structure.choice_costs(kind)[index] for kind in structure.costs}
    first = int(not layer.choices[0] and len(layer.choices) > 2)  # without a branch it is not one unit less
    removed = max(1, layer.units - layer.choices[first])
    tensors = [member.partition(":")[0] for member in layer.members]
    own = {"", layer.name, *(tensor.rpartition(".")[0] for tensor in layer.parameters[:1])}
    modules = dict.fromkeys(tensor.rpartition(".")[0] for tensor in tensors)
    return LayerRow(
        name=layer.name,
        units=layer.units,
        choices=layer.choices,
        least=least,
        most=most,
        own={
            "flops": sum(op.flops for op in operations if op.parameter in layer.parameters),
            "params": sum(int(np.prod(structure.shapes[tensor])) for tensor in layer.parameters),
        },
        unit={kind: float(cost[-1] - cost[first]) / removed for kind, cost in costs.items()},
        coupled=tuple(name for name in modules if name not in {*own, *layer.consumers}),
        consumers=tuple(name for name in layer.consumers if name not in own),
    )


def _layer_table(found: Inspection) -> Figures:
    columns = ["layer", found.unit, "kept"]
    for kind in found.budgets:
        columns += [TITLES.get(kind, kind), "each"] if kind in OWN else [f"{TITLES.get(kind, kind)} each"]
    return Figures(
        f"{found.network}: {found.method}, {len(found.layers)} layers, images {told(found.input_shape)}",
        "kept: as bounds allow; FLOPs (multiply-accumulates an image), params: of the layer's own tensors; each: what "
        f"one less of the {found.unit} saves",
        columns,
        [[row.name, str(row.units), _choices(row), *_costs(row, found.budgets)] for row in found.layers],
    )


def _costs(row: LayerRow, kinds: Iterable[str]) -> Iterator[str]:
    for kind in kinds:
        if kind in OWN:
            yield _amount(kind, row.own[kind])
        yield _amount(kind, row.unit[kind])


def _amount(kind: str, count: float) -> str:
    """A small number of things needs no unit."""
    return f"{count:.4g}" if kind in OWN and count < 1000 else amounts.told(kind, count)


def _choices(row: LayerRow) -> str:
    allowed = [choice for choice in row.choices if row.least <= choice <= row.most]
    steps = set(np.diff(allowed).tolist())
    if len(allowed) < 3:
        return " or ".join(map(str, allowed))
    step = next(iter(steps)) if len(steps) == 1 else 0
    note = "" if step == 1 else f" by {step}" if step else f", {len(allowed)} choices"
    return f"{allowed[0]}–{allowed[-1]}{note}"


def _budget_table(found: Inspection) -> Figures:
    return Figures(
        "What a budget can ask",
        "least: all layers cut as far as bounds allow",
        ("budget", "least", "", "whole"),
        [
            [
                kind,
                f"{np.ceil(1e4 * reach.least) / 1e4:g}",
                amounts.told(kind, reach.least_amount, up=True),
                amounts.told(kind, reach.whole),
            ]
            for kind, reach in found.budgets.items()
        ],
    )
