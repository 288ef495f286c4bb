"""One dense network made ready to be pruned in many ways: ranked once, its moments collected once."""

from __future__ import annotations

import math
import time
import warnings
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .batchnorm import adapt_batchnorm
from .cache import Store, dense_store
from .criteria import Context, rank, select
from .inference import channels_last, first_images, logits
from .layers import Selection, Structure
from .reconstruction import PLACES, Batches, DenseMoments, repair_from_moments
from .sequential import SequentialRepair
from .shrink import mask, shrink

Repair = Literal["none", "gram", "sequential"]

GUARD_IMAGES = 100  # that a repaired network is compared with the unrepaired one on


class ChannelPruner:
    """Turns widths into a smaller network, repaired as asked.

    Attributes:
        dense: the network; never changed.
        structure: its layers.
        criterion: ranks the channels inside a layer.
        calibration: images that repair, in batches.
        context: what criteria look at.
        ranking: for every layer its units from the most to the least important.
        seconds: time spent in `prune`, `repair` and `adaptive_bn` since the start, for the summary.
    """

    def __init__(
        self,
        dense: nn.Module,
        structure: Structure,
        criterion: str,
        calibration: Batches,
        seed: int = 0,
        *,
        cache: bool = False,
    ):
        self.dense = dense
        self.structure = structure
        self.criterion = criterion
        self.calibration = [(channels_last(images), labels) for images, labels in calibration]
        store = dense_store(dense, structure, self.calibration, seed) if cache else Store()
        self.context = Context(dense, structure, self.calibration, seed, store)
        self.ranking = rank(self.context, criterion)
        self.seconds = {"prune": 0.0, "repair": 0.0, "adaptive_bn": 0.0}
        self._repairs: dict[tuple[int, int], SequentialRepair] = {}

    @property
    def moments(self) -> DenseMoments:
        """Second moments of the consumers' inputs, from one pass of the calibration images."""
        return self.context.moments

    def selection(self, widths: NDArray[np.int64]) -> Selection:
        """The units that stay at these widths (layers,)."""
        return select(self.ranking, self.structure.check_widths(widths))

    def prune(
        self,
        widths: NDArray[np.int64],
        repair: Repair = "none",
        *,
        refit: bool = False,
        images: int | None = None,
        places: int = PLACES,
        adaptive_bn: int = 0,
        guard: bool = True,
    ) -> nn.Module:
        """A physically smaller network in eval mode. It shares what did not shrink with the dense one.

        Args:
            widths: (layers,) units kept.
            repair: `none`; `gram`, least squares on the dense network's moments (milliseconds); `sequential`, least
                squares on the features the pruned network computes (a few passes over the calibration images).
            refit: with `sequential`, producers whose inputs drifted are re-fitted too.
            images: with `sequential`, use about this many of the calibration images; none for all.
            places: with `sequential`, output positions an image that a fit looks at, at most.
            adaptive_bn: re-estimate batch-norm statistics on about this many calibration images; 0 for none.
            guard: never leave the logits further from the dense network's than they are without a repair, on the
                first 100 calibration images: `gram` takes the place of `sequential` then, and nothing that of
                `gram`, with a RuntimeWarning. Costs two passes of these images; a search does without.
        """
        selection = self.selection(widths)
        untouched = np.array_equal(widths, self.structure.widths) or (repair == "none" and not adaptive_bn)
        limit = self._distance(self._shrunk(selection)) if guard and not untouched else math.inf
        for attempt in (repair, "gram") if repair == "sequential" else (repair,):
            pruned = self._shrunk(selection)
            start = time.perf_counter()
            if attempt == "gram":
                repair_from_moments(pruned, self.dense, self.structure, selection, self.moments)
            elif attempt == "sequential":
                self.sequential(images, places)(pruned, selection, refit=refit)
            self.seconds["repair"] += time.perf_counter() - start
            if adaptive_bn and not untouched:
                start = time.perf_counter()
                adapt_batchnorm(pruned, first_images(self.calibration, adaptive_bn))
                self.seconds["adaptive_bn"] += time.perf_counter() - start
            if untouched or not guard:
                return pruned
            distance = self._distance(pruned)
            if math.isfinite(distance) and not distance > limit:
                return pruned
            warnings.warn(
                f"the {attempt} repair was not taken: the squared distance of the logits from the dense network's is "
                f"{distance:.4g} with it and {limit:.4g} without; cut less, or pass more calibration images",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._shrunk(selection)

    def _shrunk(self, selection: Selection) -> nn.Module:
        start = time.perf_counter()
        pruned = shrink(self.dense, self.structure, selection).eval()
        self.seconds["prune"] += time.perf_counter() - start
        return pruned

    def sequential(self, images: int | None = None, places: int = PLACES) -> SequentialRepair:
        """The sequential repair on about this many calibration images, none for all; made once. See `prune`."""
        batches = self.calibration if images is None else first_images(self.calibration, images)
        key = len(batches), places
        if key not in self._repairs:
            self._repairs[key] = SequentialRepair(self.dense, self.structure, batches, places=places)
        return self._repairs[key]

    def _distance(self, model: nn.Module) -> float:
        """Mean squared distance of the logits from the dense network's, on the images that guard a repair."""
        images, dense = self._guard
        return float((logits(model, images) - dense).square().sum(1).mean())

    @cached_property
    def _guard(self) -> tuple[Batches, Tensor]:
        batches = first_images(self.calibration, GUARD_IMAGES)
        images = torch.cat([images for images, _ in batches])[:GUARD_IMAGES]
        labels = torch.cat([labels for _, labels in batches])[:GUARD_IMAGES]
        return [(images, labels)], logits(self.dense, [(images, labels)])

    def masked(self, widths: NDArray[np.int64]) -> nn.Module:
        """The dense-shaped network with the same channels zeroed, nothing repaired."""
        return mask(self.dense, self.structure, self.selection(widths)).eval()
