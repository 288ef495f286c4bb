"""What stands in the place of a residual branch that is gone, in an exported program."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def broadcast_constants(exported: ExportedProgram) -> None:
    """Add numbers by channel to the trunk as they are, not spread out over all images and positions first.

    A `Constant` gives a tensor of a layer's output shape, for a forward may add to it in place. Runtimes would fill it
    anew for every batch, and in 8-bit integers quantise it: a network without a branch could be slower than with it.
    """
    graph, changed = exported.graph_module.graph, False
    for spread in [node for node in graph.nodes if node.target is aten.expand.default]:
        chain = _followed(spread)
        added = _only_user(chain[-1])
        if not any(node.target is aten.clone.default for node in chain) or added is None or added.kwargs:
            continue
        if added.target not in (aten.add.Tensor, aten.add_.Tensor):
            continue
        into = added.args[0] is not chain[-1]
        other = added.args[0] if into else added.args[1]
        if other is chain[-1] or not isinstance(other, Node) or not _same_shape(other, spread):
            continue
        if _root(spread).name not in exported.graph_signature.inputs_to_parameters:
            continue  # a buffer may be written to in between
        with graph.inserting_before(added):  # in place where the trunk is what is written to: others may look at it
            instead = graph.call_function(added.target if into else aten.add.Tensor, (other, spread.args[0]))
        instead.meta = dict(added.meta)
        added.replace_all_uses_with(instead)
        for node in (added, *reversed(chain)):
            graph.erase_node(node)
        changed = True
    if changed:
        graph.eliminate_dead_code()
        exported.graph_module.recompile()


def _followed(spread: Node) -> list[Node]:
    """A node, and those behind it that give what it gives: a copy, dropout that is off."""
    chain = [spread]
    while (user := _only_user(chain[-1])) is not None:
        off = user.target is aten.dropout.default and user.args[2] is False
        if user.target is not aten.clone.default and not off:
            break
        chain.append(user)
    return chain


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _root(node: Node) -> Node:
    """What a view is of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _same_shape(one: Node, other: Node) -> bool:
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in (one, other)]
    return None not in shapes and str(shapes[0]) == str(shapes[1])
