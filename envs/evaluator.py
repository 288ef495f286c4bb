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
from ..networks.batches import Batches, targets_of
from ..networks.fused import Fused
from ..networks.inference import in_channels_last
from ..pruners.compressor import Compressor
from ..pruners.structure import Structure
from ..storage.cache import digest
from ..training.inputs import joined, leaves, taken
from ..training.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """What is known of a candidate.

    Attributes:
        accuracy: the objective's measure on the search images, 0 … 100: of a classifier, top-1 in per cent.
        reconstruction_loss: mean squared distance between its outputs (the objective's features: of a classifier, the
            logits) and the dense network's, over the variance of those: 0 for the dense network, about 1 for one that
            knows nothing.
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
        self._fused = Fused(compressor.dense, taken(self.search[0][0], slice(1)))
        name = f"outputs-{digest(tensor for batch in search for tensor in leaves(batch).values())}"
        dense = compressor.context.store.get(name, lambda: self._looked_at(self._fused(compressor.dense), self.search))
        device = next(iter(leaves(search[0][0]).values())).device
        self._features = dense["features"].to(device)
        self._spread = float(self._features.var(dim=0).sum())
        if not np.isfinite(self._spread) or self._spread == 0.0:
            raise ValueError(
                "the dense network's outputs on the search images are "
                f"{'constant' if self._spread == 0.0 else 'not finite'}: check its weights and the data's mean and std"
            )
        self._statistics = dense["statistics"]
        self.dense = self._figures(self._features, self._statistics, self.structure.units)

    @property
    def objective(self) -> Objective:
        """What candidates are measured by."""
        return self.compressor.context.objective

    @property
    def warning(self) -> str | None:
        """That the dense network does no better than guessing, in a line; none where it does, or nobody can tell."""
        chance = self.objective.chance(joined(targets_of(self.search)))
        spread = self.objective.influence(self._statistics)
        spread = spread[spread.isfinite()]
        if chance is None or len(spread) < 2:
            return None
        error = float(spread.std()) / len(spread) ** 0.5
        if self.dense.accuracy > chance + 2.0 * error:
            return None
        return (
            f"the dense network is no better than guessing on the search images ({self.objective.measure} "
            f"{self.dense.accuracy:.1f} ± {error:.1f}, an answer that looks at no image has {chance:.1f}): check its "
            "weights, the order of the classes, and the data's mean and std"
        )

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
        seen = self._looked_at(self._fused(candidate), self.search)
        return self._figures(seen["features"], seen["statistics"], kept)

    @torch.no_grad()
    def _looked_at(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        """The objective's features and statistics of all images."""
        features, statistics = [], []
        for images, targets in batches:
            outputs = self.objective.outputs(model, images)
            features.append(self.objective.features(outputs))
            statistics.append(self.objective.statistics(outputs, targets))
        return {"features": torch.cat(features), "statistics": torch.cat(statistics)}

    def _figures(self, features: Tensor, statistics: Tensor, kept: NDArray[np.int64]) -> Evaluation:
        distance = (features - self._features).square().sum(dim=1).mean() / self._spread
        if not torch.isfinite(distance):
            distance = torch.tensor(torch.finfo(torch.float32).max)
        return Evaluation(
            accuracy=self.objective.total(statistics),
            reconstruction_loss=float(distance),
            flops=self.structure.fraction("flops", kept),
            params=self.structure.fraction("params", kept),
        )
