"""Whether a file computes in its runtime what the network computes in torch, on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.inference import Batches, count_images
from ..training.inputs import Inputs, call, leaves, taken
from ..training.objective import Objective

Network = Callable[[Inputs], Any]


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from torch's.

    Attributes:
        largest: difference of an output, over the standard deviation of all of torch's outputs.
        mean: difference, over the same.
        changed: answers that are other ones; none where the objective knows of no answers.
        answers: of how many.
        images: that were looked at.
    """

    largest: float
    mean: float
    changed: int | None
    answers: int | None
    images: int

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """A file beside the network that it was made of.

    Attributes:
        parity: of their outputs.
        torch: the objective's measure in torch; none without targets.
        runtime: the objective's measure in the runtime; none without targets.
    """

    parity: Parity
    torch: float | None
    runtime: float | None


@torch.no_grad()
def compare(
    model: nn.Module, other: Network, batches: Batches, objective: Objective, *, labelled: bool = True
) -> Compared:
    """Run both over the images, batch by batch, and the first one by itself: any number of them is to go.

    Args:
        model: the network, in eval mode.
        other: the file, opened: called with what the network is called with, it returns what that returns.
        batches: of real images.
        objective: that tells answers and the measure.
        labelled: whether the batches' targets are any.

    Raises:
        ValueError: the file returns tensors of other shapes.
    """
    differences, ours, theirs = _Differences(), _Judged(objective), _Judged(objective)

    def both(images: Inputs) -> tuple[Any, Any]:
        outputs = call(model, images), other(images)
        differences.add(*outputs)
        return outputs

    for number, (images, targets) in enumerate(batches):
        if not number:
            both(taken(images, slice(1)))
        for judged, outputs in zip((ours, theirs), both(images), strict=True):
            judged.add(outputs, targets if labelled else None)
    changed, answers = ours.changed(theirs)
    parity = Parity(*differences.over_spread(), changed, answers, count_images(batches))
    return Compared(parity, ours.measure, theirs.measure)


class _Differences:
    """Sums over output tensors, in double precision."""

    def __init__(self) -> None:
        self._largest, self._sums, self._numbers = 0.0, torch.zeros(3, dtype=torch.float64), 0

    def add(self, expected: Any, actual: Any) -> None:
        """Of one batch."""
        ours, theirs = leaves(expected), leaves(actual)
        shapes = [{path: tuple(tensor.shape) for path, tensor in side.items()} for side in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the file returns tensors of {shapes[0]}, the network of {shapes[1]}")
        for path, tensor in ours.items():
            wanted = tensor.double()
            apart = (theirs[path].double() - wanted).abs()
            largest = float(apart.max())
            self._largest = largest if largest != largest else max(self._largest, largest)  # NaN stays
            self._sums += torch.stack([apart.sum(), wanted.sum(), wanted.square().sum()])
            self._numbers += wanted.numel()

    def over_spread(self) -> tuple[float, float]:
        """The largest difference and the mean one, over the standard deviation of what was expected."""
        mean, first, second = (self._sums / self._numbers).tolist()
        spread = max(second - first**2, 0.0) ** 0.5 or torch.finfo().tiny
        return self._largest / spread, mean / spread


class _Judged:
    """What an objective says of outputs."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._statistics: list[Tensor] = []
        self._answers: list[Tensor | None] = []

    def add(self, outputs: Any, targets: Any) -> None:
        """Of one batch; targets are none where there are none."""
        self._answers.append(self._objective.answers(outputs))
        if targets is not None:
            self._statistics.append(self._objective.statistics(outputs, targets))

    @property
    def measure(self) -> float | None:
        """Of all batches."""
        return self._objective.total(torch.cat(self._statistics)) if self._statistics else None

    def changed(self, other: _Judged) -> tuple[int | None, int | None]:
        """How many answers are other ones, of how many."""
        pairs = [(a, b) for a, b in zip(self._answers, other._answers, strict=True) if a is not None and b is not None]
        if not pairs:
            return None, None
        return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)
