"""How much of a residual sum a layer's branch is: what is lost in the branch counts by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ..networks.graph import UntraceableError, Walk, trace
from ..training.inputs import Inputs, taken
from .context import Context
from .repair.sequential import summands

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
    with torch.inference_mode():
        walk = _Sums(graph, context.model, [taken(context.calibration[0][0], slice(IMAGES))])
        walk.run()
    behind: Behind = {}
    for node in graph.nodes:
        behind[node] = {node}.union(*(behind[before] for before in node.all_input_nodes))
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
    """Computes a network, one batch.

    Attributes:
        shares: for every sum its two operands, and the share of each.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module, images: Sequence[Inputs]):
        super().__init__(graph, model, images)
        self.shares: list[list[tuple[fx.Node, float]]] = []

    def compute(self, node: fx.Node) -> None:
        """One node; a sum's operands are looked at while they are there."""
        operands = {operand: self.values[operand][0] for operand in summands(node)}
        super().compute(node)
        result = self.values[node][0]
        if operands and all(isinstance(x, Tensor) and x.shape == result.shape for x in operands.values()):
            size = float(result.square().mean(dim=0).sum()) or 1.0
            self.shares.append([(operand, _variance(x) / size) for operand, x in operands.items()])


def _variance(x: Any) -> float:
    return float(x.var(dim=0, correction=0).sum()) if isinstance(x, Tensor) and x.is_floating_point() else 0.0
