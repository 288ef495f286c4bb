"""From what is kept to a smaller network, repaired as asked."""

from __future__ import annotations

import math
import time
import warnings
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import Repair
from ..networks.inference import Batches, count_images, first_images, in_channels_last, logits
from ..training.inputs import leaves, taken
from .context import Context
from .method import Compressed
from .repair.batchnorm import adapt_batchnorm
from .repair.gram import repair_from_moments
from .repair.sequential import SequentialRepair, UntraceableError
from .structure import Kept, Structure

GUARD_IMAGES = 100  # that a repaired network is compared with the unrepaired one on
ROUNDING = 1e-5  # of the outputs' size: who differs by no more is not further away


class Compressor:
    """Makes smaller networks of one dense one; what they share is computed once.

    Attributes:
        context: the dense network, its layers, the calibration images and the criterion.
        seconds: time spent in `prune`, `repair` and `adaptive_bn` since the start, for the summary.
    """

    def __init__(self, context: Context):
        self.context = context
        self.seconds = {"prune": 0.0, "repair": 0.0, "adaptive_bn": 0.0}
        self._calibration = in_channels_last(context.calibration)
        self._untraceable = False
        self._sequential: dict[tuple[int, int], SequentialRepair] = {}

    @property
    def dense(self) -> nn.Module:
        """The network; never changed."""
        return self.context.model

    @property
    def structure(self) -> Structure:
        """Its layers."""
        return self.context.structure

    def compress(self, kept: Kept) -> Compressed:
        """The network that keeps so many units (layers,), nothing fitted; it shares with the dense one what it can."""
        start = time.perf_counter()
        compressed = self.context.method.apply(self.context, self.structure.check_kept(kept))
        self.seconds["prune"] += time.perf_counter() - start
        return compressed

    def masked(self, kept: Kept) -> nn.Module:
        """The dense-shaped network with the same units zeroed, nothing repaired."""
        return self.context.method.masked(self.context, self.structure.check_kept(kept)).eval()

    def __call__(self, kept: Kept, repair: Repair) -> nn.Module:
        """`compress`, repaired; the smaller network in eval mode.

        With `repair.guard`, the outputs (the objective's features) are never left further from the dense network's than
        they are without a repair, on the first 100 calibration images: `gram` takes the place of `sequential` then, and
        nothing that of `gram`, with a RuntimeWarning. That costs two passes of these images; a search does without.
        """
        untouched = np.array_equal(kept, self.structure.units) or (repair.kind == "none" and not repair.adaptive_bn)
        guard = repair.guard and not untouched
        limit = max(self._distance(self.compress(kept).model), self._rounding) if guard else math.inf
        for attempt in ("sequential", "gram") if repair.kind == "sequential" else (repair.kind,):
            compressed = self.compress(kept)
            if not untouched:
                self._repair(compressed, repair.model_copy(update={"kind": attempt}))
            if not guard:
                return compressed.model
            distance = self._distance(compressed.model)
            if math.isfinite(distance) and not distance > limit:
                return compressed.model
            warnings.warn(
                f"the {attempt} repair was not taken: the squared distance of the outputs from the dense network's is "
                f"{distance:.4g} with it and {limit:.4g} without; cut less, or pass more calibration images",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.compress(kept).model

    def prepare(self, repair: Repair) -> None:
        """Compute what all calls with this repair share: to be done before copies are made of this."""
        if repair.kind == "gram":
            _ = self.context.moments
        if repair.kind != "none" or repair.adaptive_bn:
            _ = self._told_if_alike
        self.compress(self.structure.units)

    def sequential(self, images: int | None, samples: int) -> SequentialRepair:
        """The sequential repair on so many calibration images, none for all; made once. See `Repair`."""
        batches = self._calibration if images is None else first_images(self._calibration, images)
        key = count_images(batches), samples
        if key not in self._sequential:
            self._sequential[key] = SequentialRepair(self.dense, batches, samples=samples)
        return self._sequential[key]

    def _repair(self, compressed: Compressed, repair: Repair) -> None:
        _ = self._told_if_alike
        start = time.perf_counter()
        if repair.kind == "gram":
            repair_from_moments(compressed, self.dense, self.context.moments)
        elif repair.kind == "sequential":
            try:
                self.sequential(repair.images, repair.samples)(compressed, refit=repair.refit)
            except UntraceableError as error:
                self._told_untraceable(str(error))
                repair_from_moments(compressed, self.dense, self.context.moments)
        repaired = time.perf_counter()
        if repair.adaptive_bn:
            adapt_batchnorm(compressed.model, first_images(self._calibration, repair.adaptive_bn))
        self.seconds["repair"] += repaired - start
        self.seconds["adaptive_bn"] += time.perf_counter() - repaired

    def _distance(self, model: nn.Module) -> float:
        """Mean squared distance of the outputs from the dense network's, on the images that guard a repair."""
        images, dense = self._guard
        return float((self._features(model, images) - dense).square().sum(1).mean())

    def _features(self, model: nn.Module, batches: Batches) -> Tensor:
        return logits(model, batches, self.context.objective.features)

    @cached_property
    def _told_if_alike(self) -> bool:
        """Whether all calibration images are one and the same: said once, for no comparison on them could tell."""
        first = leaves(taken(self._calibration[0][0], slice(1)))
        for inputs, _ in self._calibration:
            if any(not torch.equal(part, first[name].expand_as(part)) for name, part in leaves(inputs).items()):
                return False
        warnings.warn(
            f"all calibration images ({count_images(self._calibration)}) are the same: a repair fits the network to "
            "that one alone and may ruin it for others; pass a few hundred different ones",
            RuntimeWarning,
            stacklevel=4,
        )
        return True

    def _told_untraceable(self, reason: str) -> None:
        """Said once."""
        if not self._untraceable:
            self._untraceable = True
            warnings.warn(
                f"the sequential repair gives way to the gram repair: {reason}; set repair.search.kind=gram and "
                "repair.final.kind=gram to do so without a word",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def _rounding(self) -> float:
        """A squared distance that is none."""
        _, dense = self._guard
        return ROUNDING**2 * float(dense.square().sum(1).mean())

    @cached_property
    def _guard(self) -> tuple[Batches, Tensor]:
        images = first_images(self._calibration, GUARD_IMAGES)
        return images, self._features(self.dense, images)
