"""What a network's weights measure, for the cost of a method that comes after one which makes them smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measures:
    """Of some weight tensors, and of the whole network; integers or, between two plans, real numbers.

    Attributes:
        outputs: (…, tensors) the first dimension.
        inputs: (…, tensors) the second.
        kernel: (tensors,) elements of all further ones.
        flops: (…) multiply-accumulates an image of the network.
        params: (…) its parameters.
    """

    outputs: Any
    inputs: Any
    kernel: NDArray[np.int64]
    flops: Any
    params: Any

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]], flops: int, params: int) -> Measures:
        """A network as it is."""
        sizes = np.array([shape[:2] for shape in shapes], dtype=np.int64).reshape(-1, 2)
        return cls(sizes[:, 0], sizes[:, 1], kernel_sizes(shapes), flops, params)

    @property
    def weights(self) -> Any:
        """(…, tensors)."""
        return self.outputs * self.inputs * self.kernel


class Measured(Protocol):
    """What some weights measure, as a function of what an earlier method keeps."""

    def __call__(self, kept: NDArray[Any]) -> Measures:
        """(…, layers) units kept of the earlier method."""
        ...


class AsMeasured:
    """The multiply-accumulates or parameters themselves, of a method that changes neither.

    Args:
        dense: the network as it is.
        kind: what is counted.
    """

    def __init__(self, dense: Measures, kind: Literal["flops", "params"]):
        self.dense, self.kind = dense, kind

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) → (…)."""
        at = at or self.dense
        return (at.flops if self.kind == "flops" else at.params) + np.zeros(kept.shape[:-1], dtype=np.int64)


class FollowingCost(Protocol):
    """A `CostModel` that can be asked of a network that an earlier method has made smaller."""

    def __call__(self, kept: NDArray[Any], at: Measures | None = None) -> Any:
        """(…, layers) units kept → (…) cost; `at` what the weights measure by then, none for the dense network."""
        ...


def kernel_sizes(shapes: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """(tensors,) how many elements an output has of an input."""
    return np.array([np.prod(shape[2:], dtype=np.int64) for shape in shapes], dtype=np.int64)


@dataclass(frozen=True)
class JointCost:
    """The follower's cost of what the leader leaves.

    Attributes:
        cost: of the follower.
        measured: what the leader leaves.
        leader: places of its layers in the walk.
        follower: of the other's.
    """

    cost: FollowingCost
    measured: Measured
    leader: NDArray[np.int64]
    follower: NDArray[np.int64]

    def __call__(self, kept: NDArray[Any]) -> Any:
        """(…, layers) → (…)."""
        return self.cost(kept[..., self.follower], self.measured(kept[..., self.leader]))
