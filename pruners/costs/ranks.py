"""What a network costs of whose layers some are two in a row, as a function of the features between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .measures import Measures


@dataclass(frozen=True)
class TwoLayers:
    """A layer as the two that it may become.

    Attributes:
        height: inputs of the first one are its inputs, so many each.
        width: outputs of the second one are its outputs, so many each.
        before: multiply-accumulates an image for each weight of the first.
        behind: of the second, and of the layer as it is.
    """

    height: int
    width: int
    before: int
    behind: int

    def most(self, shape: tuple[int, ...]) -> int:
        """The highest rank at which the two cost less than a layer of this shape, in FLOPs and in parameters."""
        first, second = shape[1] * self.height, shape[0] * self.width
        whole = int(np.prod(shape))
        ranks = (self.before * first + self.behind * second, self.behind * whole), (first + second, whole)
        return min((whole - 1) // rank for rank, whole in ranks)


class RankCost:
    """Fixed + Σ over layers of what a rank costs · rank, and of what the layer costs where two would not cost less.

    In a network that was cut before, a layer that got small is one again. (There are no layers there whose two work on
    images of different sizes: where such a one is one again, FLOPs may fall and parameters rise.)

    Args:
        layers: as two.
        most: (layers,) the highest rank at which each of the dense network's is two.
        dense: what their weights measure, and the whole network.
        kind: what is counted.
    """

    def __init__(
        self, layers: Sequence[TwoLayers], most: Sequence[int], dense: Measures, kind: Literal["flops", "params"]
    ):
        of = np.array([[two.height, two.width, two.before, two.behind] for two in layers], dtype=np.int64)
        self.height, self.width, self.before, self.behind = of.reshape(-1, 4).T
        self.most, self.dense, self.kind = np.array(most, dtype=np.int64), dense, kind

    @cached_property
    def whole(self) -> NDArray[Any]:
        """(layers,) what each costs in the dense network, as it is."""
        return np.asarray(self.dense.weights * (self.behind if self.kind == "flops" else 1))

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) → (…)."""
        at = at or self.dense
        first, second, whole = at.inputs * self.height, at.outputs * self.width, at.weights
        two = kept <= self.most
        if at is not self.dense:
            two = two & (kept * (first + second) < whole)
        if self.kind == "flops":
            first, second, whole = first * self.before, second * self.behind, whole * self.behind
        fixed = (at.flops if self.kind == "flops" else at.params) - whole.sum(axis=-1)
        return fixed + np.where(two, kept * (first + second), whole).sum(axis=-1)
