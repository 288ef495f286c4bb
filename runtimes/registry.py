"""Runtimes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..configs.registry import Registry
from .runtime import Runtime


def _made(name: str, maker: Callable[..., Any], _known: Mapping[str, Runtime]) -> Runtime:
    made = maker()
    if not isinstance(made, Runtime):
        raise TypeError(
            f"runtime {name} makes a {type(made).__name__}: expected a secateur.runtimes.Runtime, with export, open, "
            "about and quantise"
        )
    return made


RUNTIMES: Registry[Runtime] = Registry("runtime", _made)
