"""The package is laid out as docs/architecture.md says: arrows one way, no circles, modules that can be read."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build"}

LONGEST = 350
TOO_LONG: set[str] = set()
KNOW_THE_FACE: set[str] = set()  # may import the package's own __init__, which stands above all rooms
KNOW_CHANNELS = {  # outside the method's own room
    "agents.allocators.ranks",
    "commands.filters",
    "pruners",
    "testing.criteria",
}


def _modules() -> dict[str, Path]:
    """Dotted name below the package → file; the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in OUTSIDE or parts[0].startswith("."):
            continue
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(module: str) -> Iterator[tuple[str, bool]]:
    """Modules of the package that one imports, and whether only for its types."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] == "secateur" for name in node.names), f"{module}: import relatively"
        if isinstance(node, ast.ImportFrom) and node.level:
            home = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in home if part)
            for name in node.names:
                inner = f"{base}.{name.name}".strip(".")
                yield inner if inner in MODULES else base, id(node) in typing


ARROWS = {module: {target for target, typing in _imports(module) if not typing} - {module} for module in MODULES}


def _room(module: str) -> str:
    return module.split(".")[0]


def _rooms() -> dict[str, set[str]]:
    """The page's table: room → rooms that it imports, in the page's order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    return {room: {name.strip() for name in names.split(",")} - {"–"} for room, names in rows}


ROOMS = _rooms()


def test_the_page_names_every_room():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - OUTSIDE
    assert set(ROOMS) == folders


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_go_one_way(room: str):
    order = list(ROOMS)
    later = {other for other in ROOMS[room] if order.index(other) >= order.index(room)}
    assert not later, f"the page lets {room} import {later}, which come after it"
    for module in MODULES:
        if _room(module) != room:
            continue
        targets = {_room(target) for target, _ in _imports(module)} - {room}
        targets -= {""} if module in KNOW_THE_FACE else set()
        assert targets <= ROOMS[room], f"{module} imports {targets - ROOMS[room]}: {room} may not"


def test_no_module_imports_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            raise AssertionError("a circle: " + " → ".join((*path[path.index(module) :], module)))
        if module not in done:
            for target in sorted(ARROWS[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert done == set(MODULES)


def test_no_rooms_inside_a_room_import_each_other():
    inner = {module: ".".join(module.split(".")[:2]) for module in MODULES if len(module.split(".")) > 2}
    pairs = {
        (inner[module], inner[target])
        for module, targets in ARROWS.items()
        for target in targets
        if module in inner and target in inner and inner[module] != inner[target]
    }
    assert not {frozenset(pair) for pair in pairs if pair[::-1] in pairs}


def test_a_method_is_known_in_its_own_room():
    channels = {module for module in MODULES if f"{module}.".startswith("pruners.channels.")}
    knowing = {module for module, targets in ARROWS.items() if targets & channels and module not in channels}
    assert knowing <= KNOW_CHANNELS


def test_modules_can_be_read():
    long = {
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST
    }
    assert long <= TOO_LONG


def test_lists_of_what_fails_name_what_is_there():
    assert {ROOT / name for name in TOO_LONG} <= set(MODULES.values())
    assert set(MODULES) >= KNOW_CHANNELS | KNOW_THE_FACE


def test_pruners_is_a_room_and_not_a_hall():
    folder = ROOT / "pruners"
    assert len(list(folder.glob("*.py"))) <= 15
    assert len([path for path in folder.iterdir() if (path / "__init__.py").is_file()]) <= 3


def test_folders_are_at_most_two_deep():
    deep = {module for module, path in MODULES.items() if path.name == "__init__.py" and module.count(".") > 2}
    assert not deep


def test_the_package_list_is_the_tree():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {f"secateur.{module}".rstrip(".") for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(told["tool"]["setuptools"]["packages"]) == packages
    assert set(told["tool"]["mypy"]["files"]) == {package.split(".")[1] for package in packages if "." in package}


def test_every_page_says_files_that_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page):
        inside = [ROOT / name, ROOT / "pruners" / name]
        assert any(path.is_file() for path in inside), f"docs/architecture.md names {name}"
