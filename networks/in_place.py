"""Changes in place, in a graph whose values stay as they are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""What Python does in place, and what gives the same as a new value."""


def method(name: str) -> str:
    """A method that gives as a new value what this one does in place; itself, where there is none or no need."""
    plain = name.removesuffix("_")
    return plain if not name.endswith("__") and hasattr(Tensor, plain) else name


def told_apart(graph: fx.Graph, model: nn.Module) -> None:
    """Whoever uses a value after it was changed in place uses what came of the change, in place.

    Views of it are not looked for: whether a walk computes what the network does is checked afterwards.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = node.args[0] if node.args and _changes(model, node) else None
        if isinstance(changed, fx.Node):
            for user in [user for user in changed.users if place[user] > place[node]]:
                user.replace_input_with(changed, node)


def _changes(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return method(str(node.target)) != node.target
    return node.op == "call_function" and (node.target in FUNCTIONS or bool(node.kwargs.get("inplace")))
