"""What a candidate is worth: prune, repair and look, on the search images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..pruners.cache import digest
from ..pruners.fused import Fused
from ..pruners.inference import channels_last, logits
from ..pruners.layers import Structure
from ..pruners.pruner import ChannelPruner, Repair
from ..pruners.reconstruction import PLACES, Batches


@dataclass(frozen=True)
class Evaluation:
    """What is known of a candidate.

    Attributes:
        accuracy: top-1 on the search images, in per cent.
        reconstruction_loss: mean squared distance between its logits and the dense network's, over the variance
            of the dense logits: 0 for the dense network, about 1 for one that knows nothing.
        flops: fraction kept.
        params: fraction kept.
    """

    accuracy: float
    reconstruction_loss: float
    flops: float
    params: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Evaluator(Protocol):
    """Whoever can judge widths. The environment is handed one: a real network's, or a toy with a known optimum."""

    @property
    def dense(self) -> Evaluation:
        """The dense network's own figures."""
        ...

    def evaluate(self, widths: NDArray[np.int64]) -> Evaluation:
        """Judge a candidate of these widths (layers,)."""
        ...

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        """Judge candidates, some at a time where it can; their evaluations in order, each as soon as it is there."""
        ...


class CandidateEvaluator:
    """Judges by pruning, repairing and running the smaller network; no candidate is judged twice.

    `repair`, `refit`, `images`, `places` and `adaptive_bn` say how a candidate is repaired; see `ChannelPruner.prune`.

    Attributes:
        dense: the dense network's own figures on the search images.
        known: widths → evaluation of everything judged so far; a resumed run fills it from its log.
        seconds: time spent by part: `prune`, `repair`, `adaptive_bn`, `evaluate`.
    """

    def __init__(
        self,
        pruner: ChannelPruner,
        search: Batches,
        *,
        repair: Repair = "gram",
        refit: bool = False,
        images: int | None = None,
        places: int = PLACES,
        adaptive_bn: int = 0,
    ):
        self.pruner = pruner
        self.search = [(channels_last(images), labels) for images, labels in search]
        self._prune = partial(
            pruner.prune,
            repair=repair,
            refit=refit,
            images=images,
            places=places,
            adaptive_bn=adaptive_bn,
            guard=False,
        )
        self.known: dict[tuple[int, ...], Evaluation] = {}
        self._evaluate_seconds = 0.0
        self._fused = Fused(pruner.dense, self.search[0][0][:1])
        name = f"logits-{digest(images for images, _ in search)}"
        dense = pruner.context.store.get(name, lambda: {"logits": logits(pruner.dense, search)})["logits"]
        self._logits = dense.to(search[0][0].device)
        self._spread = float(self._logits.var(dim=0).sum())
        if not np.isfinite(self._spread) or self._spread == 0.0:
            raise ValueError(
                "the dense network's logits on the search images are "
                f"{'constant' if self._spread == 0.0 else 'not finite'}: check its weights and the data's mean and std"
            )
        self.dense = self._judge(self._logits, self.structure.widths)

    @property
    def structure(self) -> Structure:
        """The dense network's layers."""
        return self.pruner.structure

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by part."""
        return {**self.pruner.seconds, "evaluate": self._evaluate_seconds}

    def evaluate(self, widths: NDArray[np.int64]) -> Evaluation:
        """Judge a candidate of these widths (layers,)."""
        key = tuple(int(width) for width in widths)
        if key not in self.known:
            candidate = self._prune(widths)
            start = time.perf_counter()
            self.known[key] = self.judge(candidate, widths)
            self._evaluate_seconds += time.perf_counter() - start
        return self.known[key]

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        """Judge candidates, one after another."""
        return map(self.evaluate, plans)

    def prepare(self) -> None:
        """Compute what candidates share but only the first would ask for: to be done before copies are made of this."""
        if self._prune.keywords["repair"] == "gram":
            _ = self.pruner.moments

    def judge(self, candidate: nn.Module, widths: NDArray[np.int64]) -> Evaluation:
        """The figures of a network that was pruned to these widths and repaired in whatever way."""
        return self._judge(logits(self._fused(candidate), self.search), widths)

    def _judge(self, outputs: Tensor, widths: NDArray[np.int64]) -> Evaluation:
        labels = torch.cat([labels for _, labels in self.search])
        distance = (outputs - self._logits).square().sum(dim=1).mean() / self._spread
        if not torch.isfinite(distance):
            distance = torch.tensor(torch.finfo(torch.float32).max)
        return Evaluation(
            accuracy=100.0 * float(((outputs.argmax(1) == labels) & outputs.isfinite().all(1)).double().mean()),
            reconstruction_loss=float(distance),
            flops=self.structure.fraction("flops", widths),
            params=self.structure.fraction("params", widths),
        )
