"""Every field of the schema with whatever can be written there: refused by name in a line, or taken as it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from secateur.configs import Config, ConfigError, check_config, load_config

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**40, 10**20, -(10**20), 0.5, -0.5, 1e20, 1e308, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "", "x", "nan", "-1", "1e20", "true", "a\0b", "x" * 10_000, "[red]", "\ud800"),
    *([], {}, [0], [True], [math.nan], [-1, 2], [0.9, 0.1], [[]], [["a"]], [1] * 1000, {"a": 1}, {"a": math.nan}),
    *({1: 2}, {"a": [0.5, 0.1]}, {"a": True}, yaml.safe_load("2020-01-01"), b"bytes", {"a": {"b": [None]}}),
]


def leaves(model: type[BaseModel] = Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        yield (*path, name)
        for inner in (o for o in options if isinstance(o, type) and issubclass(o, BaseModel)):
            yield from leaves(inner, (*path, name))


LEAVES = sorted(leaves())
TREE = load_config("digits").model_dump(mode="json")


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The digits config with another value at this place."""
    tree: dict[str, Any] = dict(TREE)
    node = tree
    for step in path[:-1]:
        node[step] = dict(node[step] or {})
        node = node[step]
    if path[0] == "budget" and len(path) == 2:
        node.clear()
    node[path[-1]] = value
    return tree


def says(found: Any, value: Any) -> bool:
    """Whether what was taken is what was written."""
    if isinstance(found, bool):
        return value in (found, str(found).lower(), int(found))
    if isinstance(found, int | float) and not isinstance(value, bool):
        return float(value) == found
    if isinstance(value, bytes):
        return bool(found.encode() == value)
    if isinstance(value, list):
        return len(found) == len(value) and all(map(says, found, value))
    if isinstance(found, dict) and isinstance(value, str):
        return bool(found["name"] == value)  # a section's short form
    if isinstance(value, dict) and not value:
        return True  # a section of defaults
    return bool(found == value and type(found) is type(value))


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_a_field_takes_what_it_says_or_is_named(path: tuple[str, ...]) -> None:
    taken = 0
    for value in ODD:
        try:
            found: Any = check_config(changed(path, value)).model_dump(mode="json")
        except ConfigError as refused:
            said = str(refused)
            assert "\n" not in said
            assert len(said) < 1500
            assert path[-1] in said or path[-2] in said
            continue
        taken += 1
        for step in path:
            found = found[step]
        assert says(found, value), value
    assert taken < len(ODD)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.episodes=true", r"agent\.episodes: true is no number"),
        ("agent.hidden=[true]", r"agent\.hidden\.0: true is no number"),
        ("budget.flops=true", r"budget\.flops: true is no number"),
        ("finetune.learning_rate=.inf", r"finetune\.learning_rate = inf: input should be a finite number"),
        ("data.mean=[.nan]", r"data\.mean\.0 = nan: input should be a finite number"),
        ("network.kwargs={a: .nan}", r"network\.kwargs\.a.* = nan: input should be a finite number"),
        ("seed=-1", r"seed = -1: input should be greater than or equal to 0"),
        ("seed=4294967296", r"seed = 4294967296: input should be less than 4294967296"),
        ("data.split_seed=-1", r"data\.split_seed = -1: input should be greater than or equal to 0"),
        ('data.root="a\\0b"', r"data\.root: 'a\\x00b' is no path: it holds a null character"),
        ("agent={episodes: 1, episodes: 2}", r"the value is not YAML: the key 'episodes' is there twice"),
    ],
)
def test_faults_that_would_show_late(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits", [override])
