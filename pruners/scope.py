"""Which layers the user leaves whole, and which numbers of units may be kept: what the config says, for any method."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from ..configs import did_you_mean
from ..configs.schema import LayersConfig
from .structure import PlanError

T = TypeVar("T")


def ignored_names(
    model: nn.Module, known: Mapping[str, Collection[str]], patterns: Iterable[str], whole: Collection[str] = ()
) -> set[str]:
    """The layers that the user leaves whole.

    Args:
        model: that the modules are of.
        known: layer → names it goes by (its own, its modules').
        patterns: names, patterns (`layer4.*`) or types (`Linear`, `BasicBlock`: of a module or one round it).
        whole: modules that are left whole in any case; to name one is no mistake.

    Raises:
        PlanError: one fits nothing; the near miss is named.
    """
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    found: set[str] = set()
    for pattern in patterns:
        fits = {
            layer
            for layer, names in known.items()
            if any(fnmatchcase(name, pattern) or pattern in _types_round(name, types) for name in names)
        }
        if not fits and not any(fnmatchcase(name, pattern) for name in whole):
            near = did_you_mean(pattern, [*known, *whole, *set(types.values())])
            raise PlanError(f"layers.ignore names {pattern!r}, which is no layer here, nor a module's type{near}")
        found |= fits
    return found


def no_branches(config: LayersConfig, method: str) -> None:
    """Raises PlanError where a config asks for what channels alone have."""
    if config.branches:
        raise PlanError(f"layers.branches is for method: channels; leave it out with method: {method}")


def no_grids(config: LayersConfig, method: str) -> None:
    """Raises PlanError where a config asks for what bits alone have."""
    for key, asked in (("activation_bits", config.activation_bits), ("grid", config.grid != "row")):
        if asked:
            raise PlanError(f"layers.{key} is for method: bits; leave it out with method: {method}")


def choices_of(name: str, units: int, round_to: int | Mapping[str, int]) -> tuple[int, ...]:
    """How many units of a layer may be kept: multiples of `round_to`, and all.

    Args:
        name: of the layer.
        units: of the dense network.
        round_to: for all layers, or by pattern; where several fit, the last counts.
    """
    step = step_of(name, round_to)
    return (*range(step, units, step), units)


def step_of(name: str, round_to: int | Mapping[str, int]) -> int:
    """What the units kept of a layer are a multiple of; where several patterns fit, the last counts."""
    return round_to if isinstance(round_to, int) else last_said(name, round_to, 1)


def chooses_inputs(config: LayersConfig) -> bool:
    """Whether `activation_bits` leaves a choice for some inputs."""
    said = config.activation_bits
    return any(isinstance(bits, list) for bits in (said.values() if isinstance(said, dict) else [said]))


def bits_of_inputs(modules: Sequence[str], whole: Sequence[str], config: LayersConfig) -> list[int | list[int] | None]:
    """For every module what `activation_bits` says of its inputs: bits, some to choose from, or nothing.

    Args:
        modules: by name.
        whole: modules that are left whole; to name one is no mistake.
        config: of the user's.

    Raises:
        PlanError: a pattern fits none of them.
    """
    said = config.activation_bits
    if not isinstance(said, dict):
        return [said] * len(modules)
    known = [*modules, *whole]
    for pattern in said:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = did_you_mean(pattern, known)
            raise PlanError(f"layers.activation_bits names {pattern!r}, which is no module of a layer here{near}")
    return [last_said(name, said, None) for name in modules]


def sparsity_range(name: str, bounds: Mapping[str, tuple[float, float]], most: float) -> tuple[float, float]:
    """The least and the most sparsity of a layer: as the last bound that fits its name says, else from 0 to `most`."""
    return last_said(name, bounds, (0.0, most))


def last_said(name: str, said: Mapping[str, T], default: T) -> T:
    """What the last pattern that fits a name says; the default, where none does."""
    return ([default] + [value for pattern, value in said.items() if fnmatchcase(name, pattern)])[-1]


def tied_names(names: Sequence[str], groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """The layers of every group of names and patterns, in the order of the walk.

    Raises:
        PlanError: a name fits nothing, or a layer is in two groups.
    """
    found = []
    for group in groups:
        for pattern in group:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PlanError(f"layers.tie names {pattern!r}, which is no layer here{did_you_mean(pattern, names)}")
        found.append([name for name in names if any(fnmatchcase(name, pattern) for pattern in group)])
    for name in names:
        if sum(name in group for group in found) > 1:
            raise PlanError(f"layers.tie has {name!r} in two groups: put them into one")
    return found


def _types_round(name: str, types: Mapping[str, str]) -> set[str]:
    """Types of a module and of those it stands in."""
    steps = name.split(".")
    return {types[outer] for n in range(1, len(steps) + 1) if (outer := ".".join(steps[:n])) in types}
