"""The networks that are known by a bare name. A new one is a function and a decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ..configs import Registry

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

NETWORKS: Registry[Builder] = Registry("network")
INPUT_SHAPES: dict[str, tuple[int, ...]] = {}
"""(C, H, W) of the images that a network is made for, where its maker says so."""


def register_network(name: str, input_shape: tuple[int, ...] | None = None) -> Callable[[B], B]:
    """Decorator: make a builder known as `name` in a config's `network.name`.

    The builder is called with `num_classes=` and `network.kwargs`, and returns the network with initial weights.

    Args:
        name: of the network.
        input_shape: (C, H, W) of the images that it is made for, for who looks at it without any.

    Raises:
        ValueError: the name is taken, or holds a colon (those name modules to import).
    """
    if name in NETWORKS:
        raise ValueError(f"network {name!r} is registered already: choose another name")
    add = NETWORKS.register(name)

    def register(builder: B) -> B:
        add(builder)
        if input_shape is not None:
            INPUT_SHAPES[name] = input_shape
        return builder

    return register


def registered_networks() -> dict[str, Builder]:
    """Name to builder, in the order of the names."""
    return dict(NETWORKS)
