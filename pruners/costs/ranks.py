"""What a network costs of whose layers some are two in a row, as a function of the features between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RankCost:
    """Fixed + Σ over layers of what a rank costs · rank, and of what the layer costs where two would not cost less.

    Args:
        factors: (layers,) cost of a rank.
        whole: (layers,) cost of the layer as it is.
        most: (layers,) the highest rank at which it is two.
        fixed: what is paid in any case.
    """

    def __init__(self, factors: NDArray[Any], whole: NDArray[Any], most: NDArray[Any], fixed: int):
        self.factors, self.whole, self.most, self.fixed = factors, whole, most, fixed

    @classmethod
    def of(cls, costs: Sequence[tuple[int, int]], most: Sequence[int], total: int) -> RankCost:
        """Of what a rank and all of every layer cost, the ranks at which they are two, and the whole network's cost."""
        factors, whole = np.array(costs, dtype=np.int64).T
        return cls(factors, whole, np.array(most, dtype=np.int64), total - int(whole.sum()))

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) → (…)."""
        return self.fixed + np.where(kept <= self.most, kept * self.factors, self.whole).sum(axis=-1)
