"""One dense network made ready to be pruned in many ways: ranked once, its moments collected once."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .batchnorm import adapt_batchnorm
from .criteria import Context, rank, select
from .inference import channels_last, first_images
from .layers import Selection, Structure
from .reconstruction import Batches, DenseMoments, repair_from_moments
from .sequential import repair_sequentially
from .shrink import mask, shrink

Repair = Literal["none", "gram", "sequential"]


class ChannelPruner:
    """Turns widths into a smaller network, repaired as asked.

    Attributes:
        dense: the network; never changed.
        structure: its layers.
        criterion: ranks the channels inside a layer.
        calibration: images that repair, in batches.
        context: what criteria look at.
        ranking: for every layer its units from the most to the least important.
        seconds: time spent in `prune` and `repair` since the start, for the summary.
    """

    def __init__(self, dense: nn.Module, structure: Structure, criterion: str, calibration: Batches, seed: int = 0):
        self.dense = dense
        self.structure = structure
        self.criterion = criterion
        self.calibration = [(channels_last(images), labels) for images, labels in calibration]
        self.context = Context(dense, structure, self.calibration, seed)
        self.ranking = rank(self.context, criterion)
        self.seconds = {"prune": 0.0, "repair": 0.0}

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
        adaptive_bn: int = 0,
    ) -> nn.Module:
        """A physically smaller network in eval mode. It shares what did not shrink with the dense one.

        Args:
            widths: (layers,) units kept.
            repair: `none`; `gram`, least squares on the dense network's moments (milliseconds); `sequential`, least
                squares on the features the pruned network computes (a few passes over the calibration images).
            refit: with `sequential`, producers whose inputs drifted are re-fitted too.
            images: with `sequential`, use about this many of the calibration images; none for all.
            adaptive_bn: re-estimate batch-norm statistics on about this many calibration images; 0 for none.
        """
        start = time.perf_counter()
        selection = self.selection(widths)
        pruned = shrink(self.dense, self.structure, selection)
        pruned.eval()
        shrunk = time.perf_counter()
        if repair == "gram":
            repair_from_moments(pruned, self.dense, self.structure, selection, self.moments)
        elif repair == "sequential":
            batches = self.calibration if images is None else first_images(self.calibration, images)
            repair_sequentially(pruned, self.dense, self.structure, selection, batches, refit=refit)
        if adaptive_bn and np.any(widths < self.structure.widths):
            adapt_batchnorm(pruned, first_images(self.calibration, adaptive_bn))
        self.seconds["prune"] += shrunk - start
        self.seconds["repair"] += time.perf_counter() - shrunk
        return pruned

    def masked(self, widths: NDArray[np.int64]) -> nn.Module:
        """The dense-shaped network with the same channels zeroed, nothing repaired."""
        return mask(self.dense, self.structure, self.selection(widths)).eval()
