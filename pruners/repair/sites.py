"""Where a sequential repair fits a network: which layers, behind which batch norm, in which residual sum."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from ...networks.constant import Constant
from ..method import Compressed
from .statistics import repairable

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer that is solved when the images reach it.

    Attributes:
        node: its call in the graph.
        name: its module.
        norm: the batch norm behind it, if any.
        others: the other operands of the residual sum its output joins, of one after the other.
        inputs: weights of each of its outputs.
        cut: whether it was cut itself; if not, its inputs only drifted (its producers were re-fitted or cut).
        constant: whether its branch is gone, so that only what is added in its place is fitted.
    """

    node: fx.Node
    name: str
    norm: str | None
    others: tuple[fx.Node, ...]
    inputs: int
    cut: bool = False
    constant: bool = False

    @property
    def nodes(self) -> list[fx.Node]:
        """What the dense network is asked for."""
        return [self.node, *self.others]

    @property
    def reads(self) -> list[fx.Node]:
        """What the pruned network is asked for."""
        return [*(() if self.constant else self.node.all_input_nodes[:1]), *self.others]


def possible_sites(graph: fx.Graph, dense: nn.Module, norms: Mapping[str, str]) -> list[Site]:
    """All that a network has.

    Args:
        graph: of it.
        dense: the network.
        norms: layer → the batch norm behind it.
    """
    calls: dict[str, list[fx.Node]] = {}
    seen: set[fx.Node] = set()  # what is computed of the inputs; a table of positions is not
    for node in graph.nodes:
        if node.op == "placeholder" or not seen.isdisjoint(node.all_input_nodes):
            seen.add(node)
        if node.op == "call_module" and node in seen:
            calls.setdefault(str(node.target), []).append(node)
    sites = []
    for name, nodes in calls.items():
        if len(nodes) == 1 and repairable(dense.get_submodule(name)):
            # a module that is called twice has no single input to be fitted to
            norm = norms.get(name)
            inputs = dense.get_parameter(f"{name}.weight")[0].numel()
            sites.append(Site(nodes[0], name, norm, _other_operands(nodes[0], norm), inputs))
    return sites


def chosen_sites(possible: Sequence[Site], compressed: Compressed, refit: bool) -> dict[fx.Node, Site]:
    """Those that are solved: what was cut, with `refit` all others too, and the constants where branches were."""
    found = []
    for site in possible:
        module = compressed.model.get_submodule(site.name)
        if not isinstance(module, Constant):
            found.append(replace(site, cut=site.name in compressed.cut))
        elif module.mean is not None and site.others:
            found.append(replace(site, cut=True, constant=True))
    found = [site for site in found if site.cut or refit]
    # Of two sites that join one sum only one can wait for the other: the one that has more weights to fit with.
    found.sort(key=lambda site: (site.constant, not site.cut, -site.inputs))
    sites: dict[fx.Node, Site] = {}
    for site in found:
        others = tuple(other for other in site.others if not _needs(other, site.node, sites))
        if others or not site.constant:
            sites[site.node] = replace(site, others=others)
    return sites


def _other_operands(node: fx.Node, norm: str | None) -> tuple[fx.Node, ...]:
    """What a consumer's output, after its batch norm, is added to, and the sum of the two in its turn (RepVGG)."""
    if norm is not None:
        node = next(iter(node.users))
    others: list[fx.Node] = []
    while len(node.users) == 1 and (operands := summands(next(iter(node.users)))):
        others += [operand for operand in operands if operand is not node]
        node = next(iter(node.users))
    return tuple(others)


def summands(node: fx.Node) -> list[fx.Node]:
    """The two values that a node adds, or nothing if it does something else."""
    if node.target not in _ADDITIONS or node.kwargs:
        return []
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    return operands if len(operands) == 2 and operands[0] is not operands[1] else []


def _needs(node: fx.Node, wanted: fx.Node, sites: Mapping[fx.Node, Site]) -> bool:
    """Whether `wanted` must be computed before `node`."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top is wanted:
            return True
        if top not in seen:
            seen.add(top)
            stack += top.all_input_nodes
            site = sites.get(top)
            stack += site.others if site is not None else ()
    return False


def needed(sites: Mapping[fx.Node, Site], node: fx.Node) -> list[fx.Node]:
    """The inputs, and what the site's sum has on its other side."""
    site = sites.get(node)
    return [*node.all_input_nodes, *(site.others if site is not None else ())]
