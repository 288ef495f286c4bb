"""Files that may come from anybody, read in one way: what is wrong with one is said in a line, with file and place."""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

LARGEST = 64 * 2**20  # bytes of a text file; a log may have more
MOST_VALUES = 100_000  # in YAML, aliases followed: a few lines of it can stand for a billion
MOST_FAULTS = 5  # that a message names

M = TypeVar("M", bound=BaseModel)

_BRANCH = re.compile(r"(function-(after|before|plain|wrap)|constrained-\w+|list|dict|tuple|set|union|nullable)\[")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """A value as messages show it: on one line, and no longer than 200 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def regular(path: Path) -> Path:
    """The path of a file that can be read from its beginning to its end; a pipe would be waited for without end.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder, a pipe, a socket or a device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file: put the file in its place")
    return path


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, larger than that, or not UTF-8.
    """
    size = regular(path).stat().st_size
    if size > largest:
        raise ValueError(f"{path} has {size} bytes, more than the {largest} that such a file may have")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start})") from None


def read_json(path: Path) -> Any:
    """The tree that a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), str(path))


def read_lines(path: Path) -> list[Any]:
    """The trees of a file with one JSON text a line; what a killed process left of a last line is left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, or a line is not JSON; the line is named.
    """
    whole = regular(path).read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse_json(line.decode("utf-8"), f"{path}, line {number}"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number} is not text in UTF-8") from None
    return found


def parse_json(text: str, where: str) -> Any:
    """A JSON text as a tree; NaN and infinity are left for the check of its content to place.

    Args:
        text: to parse.
        where: it stands: a file, or a line of it.

    Raises:
        ValueError: it is not JSON, nested without end, names a key twice, or holds an integer beyond 64 bits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as a tree of plain values.

    Raises:
        ValueError: it is not YAML, nested without end, names a key twice, or stands for too many values.
    """
    try:
        tree = yaml.load(text, _Loader)
        if not _holds_at_most(tree, MOST_VALUES):
            raise ValueError(f"it stands for more than {MOST_VALUES} values")
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except Exception as error:  # tags make values of text (dates, numbers) and fail in any way there is
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())[:300]}") from None
    return tree


def validated(model: type[M], tree: Any, where: str) -> M:
    """A tree as its model, nothing converted: `true` is no number and `"3"` no count.

    Args:
        model: what is expected.
        tree: as it was parsed.
        where: it stands.

    Raises:
        ValueError: it is something else; the first fault is named with its place.
    """
    try:
        return model.model_validate(tree, strict=True)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error.errors()[0])}") from None


def explain(fault: ErrorDetails, place: str | None = None) -> str:
    """What pydantic found, as `place = value: what is wrong`.

    Args:
        fault: one of a ValidationError's.
        place: its name; none takes the path to it.
    """
    place = place or place_of(fault["loc"]) or "the whole of it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{place}: {message}"
    message = f"{message[:1].lower()}{message[1:]}"
    told = "" if fault["type"] in ("missing", "extra_forbidden") else f" = {shown(fault['input'])}"
    return f"{place}{told}: {message}"


def listed(faults: Sequence[str]) -> str:
    """The first faults, and how many more there are."""
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return "; ".join([*faults[:MOST_FAULTS], *more])


def place_of(path: Iterable[object]) -> str:
    """A path into a tree, as messages name it: without the branches of a union, which pydantic puts in between."""
    named = (step for step in map(str, path) if not _BRANCH.match(step))
    return ".".join(text if len(text) <= 80 else f"{text[:77]}..." for text in named)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which each key is there once: which of two would count?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"the integer {shown(text)[1:-1]} has more than 64 bits")
    return number


class _Loader(yaml.SafeLoader):
    """Plain values only, and each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; what `<<` brings in may be overridden, a key of its own may not."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise ValueError(f"the key {shown(key.value)} is there twice (line {key.start_mark.line + 1})")
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _holds_at_most(tree: Any, most: int) -> bool:
    """Whether it has no more values than that, what stands in two places counted twice."""
    waiting, count = [tree], 0
    while waiting and count <= most:
        node = waiting.pop()
        count += 1
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list | tuple | set):
            waiting += node
    return count <= most
