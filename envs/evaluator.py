"""What a candidate is worth: prune, repair and look, on the search images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..configs.schema import Repair
from ..networks.batches import Batches, labels_of
from ..networks.fused import Fused
from ..networks.inference import in_channels_last, logits
from ..pruners.compressor import Compressor
from ..pruners.structure import Structure
from ..storage.cache import digest


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
    """Whoever can evaluate plans. The environment is handed one: a real network's, or a toy with a known optimum."""

    @property
    def dense(self) -> Evaluation:
        """The dense network's own figures."""
        ...

    def evaluate(self, kept: NDArray[np.int64]) -> Evaluation:
        """Evaluate the candidate that keeps so many units (layers,)."""
        ...

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        """Evaluate candidates, some at a time where it can; their evaluations in order, each as soon as it is there."""
        ...


class CandidateEvaluator:
    """Evaluates by compressing, repairing and running the smaller network; no candidate is evaluated twice.

    Attributes:
        compressor: makes the candidates.
        repair: of a candidate.
        dense: the dense network's own figures on the search images.
        known: what is kept → evaluation of everything evaluated so far; a resumed run fills it from its log.
        seconds: time spent by part: `prune`, `repair`, `adaptive_bn`, `evaluate`.
    """

    def __init__(self, compressor: Compressor, search: Batches, repair: Repair):
        self.compressor = compressor
        self.repair = repair
        self.search = in_channels_last(search)
        self.known: dict[tuple[int, ...], Evaluation] = {}
        self._evaluate_seconds = 0.0
        self._fused = Fused(compressor.dense, self.search[0][0][:1])
        name = f"logits-{digest(images for images, _ in search)}"
        dense = compressor.context.store.get(name, lambda: {"logits": logits(compressor.dense, search)})["logits"]
        self._logits = dense.to(labels_of(search)[0].device)
        self._spread = float(self._logits.var(dim=0).sum())
        if not np.isfinite(self._spread) or self._spread == 0.0:
            raise ValueError(
                "the dense network's logits on the search images are "
                f"{'constant' if self._spread == 0.0 else 'not finite'}: check its weights and the data's mean and std"
            )
        self.dense = self._figures(self._logits, self.structure.units)

    @property
    def structure(self) -> Structure:
        """The dense network's layers."""
        return self.compressor.structure

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by part."""
        return {**self.compressor.seconds, "evaluate": self._evaluate_seconds}

    def evaluate(self, kept: NDArray[np.int64]) -> Evaluation:
        """Evaluate the candidate that keeps so many units (layers,)."""
        key = tuple(int(count) for count in kept)
        if key not in self.known:
            candidate = self.compressor(kept, self.repair)
            start = time.perf_counter()
            self.known[key] = self.measure(candidate, kept)
            self._evaluate_seconds += time.perf_counter() - start
        return self.known[key]

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        """Evaluate candidates, one after another."""
        return map(self.evaluate, plans)

    def prepare(self) -> None:
        """Compute what candidates share but only the first would ask for: to be done before copies are made of this."""
        self.compressor.prepare(self.repair)

    def measure(self, candidate: nn.Module, kept: NDArray[np.int64]) -> Evaluation:
        """The figures of a network that keeps so many units (layers,), repaired in whatever way."""
        return self._figures(logits(self._fused(candidate), self.search), kept)

    def _figures(self, outputs: Tensor, kept: NDArray[np.int64]) -> Evaluation:
        labels = torch.cat(labels_of(self.search))
        distance = (outputs - self._logits).square().sum(dim=1).mean() / self._spread
        if not torch.isfinite(distance):
            distance = torch.tensor(torch.finfo(torch.float32).max)
        return Evaluation(
            accuracy=100.0 * float(((outputs.argmax(1) == labels) & outputs.isfinite().all(1)).double().mean()),
            reconstruction_loss=float(distance),
            flops=self.structure.fraction("flops", kept),
            params=self.structure.fraction("params", kept),
        )
