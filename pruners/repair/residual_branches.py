"""How much of a residual sum a layer's branch is: what is lost in the branch counts by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ...networks.graph import UntraceableError, Walk, trace
from ...networks.inference import first_images
from ...training.inputs import Inputs, taken
from ..context import Context
from .sites import summands

IMAGES = 100  # calibration images that the means are taken over

Behind = dict[fx.Node, set[fx.Node]]  # all that a node is computed from, itself among it


def residual_branch_variance(context: Context) -> NDArray[np.float64]:
    """(layers,) what part of the sum that a layer's consumers feed is theirs; computed once a context.

    The variance of the branch over the mean square of the sum that it joins, both over images, summed over features;
    the mean over consumers. 1 where they feed no sum, or torch.fx cannot follow the network. Sums within a branch
    multiply. He, Zhang, Sun (ICCV 2017, sec. 3.2) repair a residual block for its *sum*: losing a fraction of the
    branch's variance is a relative squared error of that fraction, times the share, in what the next block sees.
    """
    found = context.store.get("shares", lambda: {"shares": torch.from_numpy(_measure(context))})
    return np.asarray(found["shares"].numpy())


def _measure(context: Context) -> NDArray[np.float64]:
    layers = context.structure.layers
    try:
        graph = trace(context.model, taken(context.calibration[0][0], slice(1)))
    except UntraceableError:
        return np.ones(len(layers))
    if not any(summands(node) for node in graph.nodes):
        return np.ones(len(layers))
    behind: Behind = {}
    for node in graph.nodes:
        behind[node] = {node}.union(*(behind[before] for before in node.all_input_nodes))
    with torch.no_grad():
        images = [images for images, _ in first_images(context.calibration, IMAGES)]
        walk = _Sums(graph, context.model, images, behind)
        walk.run()
    shares: dict[str, float] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            shares[str(node.target)] = _share(node, walk.shares, behind)
    return np.array([np.mean([shares.get(name, 1.0) for name in layer.consumers]) for layer in layers])


def _share(node: fx.Node, sums: Sequence[Sequence[tuple[fx.Node, float]]], behind: Behind) -> float:
    """Of all sums to which a node contributes on one side only."""
    mine = [[share for operand, share in operands if node in behind[operand]] for operands in sums]
    return math.prod(shares[0] for shares in mine if len(shares) == 1)


class _Sums(Walk):
    """Computes a network.

    Attributes:
        behind: what every node is computed from.
        shares: for every sum its two operands, and the share of each.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module, images: Sequence[Inputs], behind: Behind):
        super().__init__(graph, model, images)
        self.behind = behind
        self.shares: list[list[tuple[fx.Node, float]]] = []

    def compute(self, node: fx.Node) -> None:
        """One node; a sum's operands are looked at while they are there."""
        operands = {operand: self.values[operand] for operand in summands(node)}
        super().compute(node)
        results = self.values[node]
        if operands and all(self._alike(operand, values, results) for operand, values in operands.items()):
            size = float(torch.cat(results).square().mean(dim=0).sum()) or 1.0
            self.shares.append([(operand, _variance(values) / size) for operand, values in operands.items()])

    def _alike(self, operand: fx.Node, values: Sequence[Any], results: Sequence[Any]) -> bool:
        """Whether a value is one an image, as the sum is: neither a constant nor something broadcast."""
        from_images = any(node.op == "placeholder" for node in self.behind[operand])
        pairs = zip(values, results, strict=True)
        return from_images and all(isinstance(x, Tensor) and x.dim() > 0 and x.shape == y.shape for x, y in pairs)


def _variance(values: Sequence[Tensor]) -> float:
    x = torch.cat(list(values))
    return float(x.var(dim=0, correction=0).sum()) if x.is_floating_point() else 0.0
