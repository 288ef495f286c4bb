"""Read a config: a built-in name or a YAML file, with `section.key=value` overrides on top."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..storage.reading import explain, listed, parse_yaml, place_of, read_text, shown
from .registry import did_you_mean
from .schema import BudgetConfig, Config

DEFAULT = "digits"
LARGEST = 2**20  # bytes of a file

_MOVED = {  # keys of version 0.1, and where they are now
    "pruning.criterion": ["criterion"],
    "pruning.search_repair": ["repair.search.kind"],
    "pruning.search_images": ["repair.search.images"],
    "pruning.search_places": ["repair.search.samples"],
    "pruning.search_adaptive_bn": ["repair.search.adaptive_bn"],
    "pruning.refit_producers": ["repair.search.refit", "repair.final.refit"],
    "pruning.final_repair": ["repair.final.kind"],
    "pruning.final_adaptive_bn": ["repair.final.adaptive_bn"],
    "layers.exclude": ["layers.ignore"],
    "agent.effort": ["agent.action_penalty"],
    "agent.finalists": ["agent.rerank"],
    "magnitude.ramp": ["gradual.ramp"],
    "magnitude.every": ["gradual.every"],
}


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the remedy."""


def builtin_configs() -> list[str]:
    """Names of the configs that come with the package."""
    folder = resources.files(__package__)
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: Config | str | Path | None = None, overrides: Iterable[str] = (), **values: Any) -> Config:
    """The checked config.

    Args:
        source: a built-in name (`digits`, `cifar10-resnet20`, …), the path of a YAML file, or a config to change;
            none is the embedded default.
        overrides: `section.key=value` strings; the value is read as YAML.
        values: the same for a caller in Python, as whole keys: `seed=3`.

    Raises:
        ConfigError: no such config, unknown key (the near miss is named), or a value out of range.
    """
    if isinstance(source, Config):
        tree, where = source.model_dump(mode="json"), f"config {source.name}"
    else:
        tree, where = _parsed(source)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} holds no config: expected sections (network:, data:, budget:, …)")
    tree = _moved(tree)
    overrides = list(overrides)
    if any(map(_budgets, overrides)) and isinstance(tree.get("budget"), dict):
        tree["budget"] = {}  # those that are set take the place of the file's, all together
    for override in overrides:
        _set(tree, override)
    tree = _moved(tree)  # overrides may speak of them, too
    tree.update({key: value for key, value in values.items() if value is not None})
    return check_config(tree, where)


def check_config(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a tree of plain values.

    Raises:
        ConfigError: in one line with the first faults.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {listed([_explain(fault) for fault in error.errors()])}") from None


def dump_config(config: Config) -> str:
    """The config as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _parsed(source: str | Path | None) -> tuple[Any, str]:
    try:
        text, where = _read(source)
        return parse_yaml(text, where), where
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read(source: str | Path | None) -> tuple[str, str]:
    name = str(source if source is not None else DEFAULT)
    if name in builtin_configs():
        return resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"config {name}"
    path = Path(name)
    if path.exists():
        return read_text(path, LARGEST), str(path)
    known = builtin_configs()
    raise ConfigError(
        f"no config {shown(name)}: neither a file nor one of {', '.join(known)}{did_you_mean(name, known)}"
    )


def _moved(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with version 0.1's keys where they are now: its run folders can still be read."""
    tree = copy.deepcopy(tree)
    for before, after in _MOVED.items():
        section, key = before.split(".")
        if not isinstance(old := tree.get(section), dict) or key not in old:
            continue
        value = old.pop(key)
        for *path, last in (name.split(".") for name in after):
            node: Any = tree
            for step in path:
                if node.get(step) is None:
                    node[step] = {}
                node = node[step]
                if not isinstance(node, dict):
                    break  # for the check to name
            else:
                node[last] = value
    for section in ("pruning", "magnitude"):
        if tree.get(section) == {}:
            del tree[section]
    return tree


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {shown(override)}: expected section.key=value, such as budget.flops=0.4")
    *path, last = key.split(".")
    node: Any = tree
    for step in path:
        if node.get(step) is None:  # absent, or an empty section
            node[step] = {}
        node = node[step]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {shown(override)}: {step} is a value, not a section")
    try:
        parsed = parse_yaml(value, f"--set {shown(override)}: the value")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    node[last] = parsed


def layered(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Overrides on top of others; budgets of the second take the place of the first one's, all together."""
    kept = [override for override in before if not _budgets(override)] if any(map(_budgets, after)) else before
    return (*kept, *after)


def _budgets(override: str) -> bool:
    section, _, kind = override.partition("=")[0].partition(".")
    return section == "budget" and kind in BudgetConfig.model_fields


def _explain(fault: Any) -> str:
    key = place_of(fault["loc"]) or "config"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1]), known) or f" (known here: {', '.join(known)})"
        return f"unknown key {key}{hint}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    return explain(fault, key)


def _known_keys(location: Iterable[Any]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
