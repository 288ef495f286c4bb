"""One registry for everything that is known by a name: methods, criteria, allocators, networks, …"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

JOINT = "+"  # between the names of plug-ins that are one

T = TypeVar("T")
Adopt = Callable[[str, Callable[..., Any], Mapping[str, T]], T]


class Registry(Mapping[str, T], Generic[T]):
    """Name → plug-in. A new one is one decorated definition in a module that is imported.

    A `package.module:callable` is looked up, too, once `imported` was allowed to import it; and names joined by `+`,
    where two plug-ins can be one (`joined`).

    Args:
        kind: what is registered, as messages call it.
        adopt: makes a plug-in of (name, imported callable, what is registered); without it only registered names count.

    Attributes:
        join: makes a plug-in of several; none where several are never one.

    Example:
        >>> CRITERIA: Registry[Callable[..., Any]] = Registry("criterion")
        >>> @CRITERIA.register("mine")
        ... def mine(context, layer): ...
    """

    def __init__(self, kind: str, adopt: Adopt[T] | None = None):
        self.kind = kind
        self._known: dict[str, T] = {}
        self._adopt = adopt
        self.join: Callable[[Sequence[T]], T] | None = None
        self._joined: dict[str, tuple[list[T], T]] = {}
        self._adopted: dict[str, tuple[Callable[..., Any], T]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make something known as `name`.

        Raises:
            ValueError: the name is another one's already, or holds a colon (those name code to import).
        """
        if ":" in name or not name:
            raise ValueError(f"{self.kind} {name!r}: a registered name holds no colon, and is not empty")
        if JOINT in name:
            raise ValueError(f"{self.kind} {name!r}: a registered name holds no {JOINT}, which joins two")

        def add(plugin: T) -> T:
            known = self._known.get(name)
            if known is not None and _home(known) != _home(plugin):
                raise ValueError(f"{self.kind} {name!r} is registered already: choose another name")
            self._known[name] = plugin
            return plugin

        return add

    def __getitem__(self, name: str) -> T:
        """The plug-in of that name.

        Raises:
            UnknownNameError: there is none; the near miss is named.
            ValueError: a dotted name that is not trusted, or names no such plug-in.
        """
        if JOINT in name and self.join is not None:
            return self._of_several(name, self.join)
        if ":" in name and self._adopt is not None:
            return self._of_code(name, self._adopt)
        if name not in self._known:
            known = ", ".join(sorted(self._known))
            raise UnknownNameError(f"no {self.kind} {name!r}, only {known}{did_you_mean(name, self._known)}")
        return self._known[name]

    def _of_code(self, name: str, adopt: Adopt[T]) -> T:
        """Made once of what the name stands for; anew where its module was imported anew."""
        found = imported(self.kind, name, trust_code=name in _TRUSTED)
        if name not in self._adopted or self._adopted[name][0] is not found:
            self._adopted[name] = found, adopt(name, found, self._known)
        return self._adopted[name][1]

    def _of_several(self, name: str, join: Callable[[Sequence[T]], T]) -> T:
        """Made once of its parts; anew where one of them is another."""
        parts = [self[part] for part in split(name)]
        if name not in self._joined or any(a is not b for a, b in zip(self._joined[name][0], parts, strict=True)):
            self._joined[name] = parts, join(parts)
        return self._joined[name][1]

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str) and self.join is not None:
            return all(part in self._known for part in split(name))
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def __len__(self) -> int:
        return len(self._known)


class UnknownNameError(ValueError, KeyError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        return str(self.args[0])


def joined(names: Iterable[str]) -> str:
    """One name for several."""
    return JOINT.join(names)


def split(name: str) -> list[str]:
    """The names that one stands for: itself, or those that `joined` made it of."""
    return name.split(JOINT)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: the near miss, if there is one."""
    near = get_close_matches(name, list(known), n=1)
    return f" – did you mean {near[0]}?" if near else ""


_TRUSTED: dict[str, str] = {}  # name → the folder that was searched first when it was imported


class Trusted:
    """What this process was allowed to import by name: whichever unpickles it finds the same by the same names.

    Pickle it before anything that is of those modules.
    """

    def __reduce__(self) -> tuple[Callable[..., Trusted], tuple[dict[str, str]]]:
        return _trust, (dict(_TRUSTED),)


def _trust(names: dict[str, str]) -> Trusted:
    for name, folder in names.items():
        _TRUSTED.setdefault(name, folder)
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return Trusted()


def admit(names: Mapping[str, str | None], *, trust_code: bool) -> None:
    """Have what dotted names stand for imported, so that registries find it by them; other names are left alone.

    Args:
        names: key of the config → name.
        trust_code: whether the user lets them be imported; see `imported`.

    Raises:
        ValueError: see `imported`.
    """
    for key, name in names.items():
        for part in split(name or ""):
            if ":" in part:
                imported(key, part, trust_code=trust_code)


def imported(key: str, name: str, *, trust_code: bool, known: Iterable[str] = ()) -> Callable[..., Any]:
    """What a `package.module:callable` names.

    Args:
        key: of the config, for messages.
        name: with a colon.
        trust_code: whether the user lets it be imported. Never read from a file: whoever wrote the name would grant it.
        known: prefixes that mean something else, for the near miss.

    Raises:
        ValueError: it is not trusted, or there is no such module or callable.
    """
    module_name, _, attribute = name.partition(":")
    if not trust_code:
        raise ValueError(
            f"{key}={name!r} names code to import and run, which may do anything: if you trust whoever wrote "
            f"it, say so with --trust-code (in Python: trust_code=True){did_you_mean(module_name, known)}"
        )
    with _working_directory_first():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses one of its own
            raise ValueError(f"{key}={name}: no module {error.name!r} here ({Path.cwd()}) or installed") from error
        except ValueError as error:  # an empty or relative module name
            raise ValueError(f"{key}={name}: expected package.module:callable") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        callables = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"{key}={name}: {module_name} has no callable {attribute!r}{did_you_mean(attribute, callables)}"
        )
    _TRUSTED.setdefault(name, str(Path.cwd()))
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """The working directory on the import path, as `python -m` has it and a console script has not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _home(plugin: Any) -> tuple[str, str]:
    """Where something is defined: a module that is run again (a notebook's cell, a reload) replaces its own."""
    kind = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    module = getattr(kind, "__module__", "")
    return (module if module in sys.modules else "", getattr(kind, "__qualname__", ""))
