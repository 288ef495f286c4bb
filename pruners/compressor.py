"""From what is kept to a smaller network, repaired as asked."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import Repair
from ..networks.inference import Batches, count_images, first_images, in_channels_last, later_images, logits
from ..training.distillation import distillable
from ..training.fit import DivergedError, OnStep
from ..training.inputs import count, leaves, taken
from .context import Context
from .method import Compressed
from .repair.batchnorm import adapt_batchnorm
from .repair.distill import distilled
from .repair.gram import repair_from_moments
from .repair.sequential import SequentialRepair, UntraceableError
from .structure import Kept, Structure

GUARD_IMAGES = 100  # that a repaired network is compared with the unrepaired one on
HELD_OUT = 10  # one of so many calibration images tells what a distillation is worth, and is not learnt from
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
        self._guards: dict[int, Distance] = {}
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

    def __call__(self, kept: Kept, repair: Repair, on_step: OnStep | None = None) -> nn.Module:
        """`compress`, repaired; the smaller network in eval mode.

        With `repair.guard`, the outputs (the objective's features) are never left further from the dense network's than
        they are without a repair, on the first 100 calibration images: `gram` takes the place of `sequential` then, and
        nothing that of `gram`, with a RuntimeWarning. That costs two passes of these images; a search does without. A
        distillation is kept only where it brings them nearer on calibration images that it has not learnt from.

        Args:
            kept: (layers,) units kept.
            repair: how.
            on_step: called after every step of a distillation, see `distilled`.

        Raises:
            ValueError: a distillation of what cannot be distilled, see `checked`.
        """
        self.checked(repair)
        if np.array_equal(kept, self.structure.units):
            return self.compress(kept).model
        compressed = self._fitted(kept, repair)
        return self._distilled(compressed, repair, on_step) if repair.distill else compressed.model

    def checked(self, repair: Repair) -> Compressor:
        """This one, if it can repair the network so: to be asked before anything that takes long.

        Raises:
            ValueError: it is to be distilled, and cannot be trained on what it returns; in one line.
        """
        objective = self.context.objective
        if repair.distill and not distillable(objective):
            raise ValueError(
                f"repair.final.distill = {repair.distill}: {objective.name} computes its loss inside the network, so "
                "that nothing can be learnt from the dense network's outputs; set it to 0"
            )
        if repair.distill and not any(parameter.requires_grad for parameter in self.dense.parameters()):
            raise ValueError(
                f"repair.final.distill = {repair.distill}: all parameters of the {type(self.dense).__name__} are "
                "frozen: set requires_grad on for some, or this to 0"
            )
        return self

    def _fitted(self, kept: Kept, repair: Repair) -> Compressed:
        """`compress`, and the least squares that the guard lets pass."""
        untouched = repair.kind == "none" and not repair.adaptive_bn
        guard = repair.guard and not untouched
        distance = self._distances(GUARD_IMAGES)
        limit = max(distance(self.compress(kept).model), distance.rounding) if guard else math.inf
        for attempt in ("sequential", "gram") if repair.kind == "sequential" else (repair.kind,):
            compressed = self.compress(kept)
            if not untouched:
                self._repair(compressed, repair.model_copy(update={"kind": attempt}))
            if not guard:
                return compressed
            left = distance(compressed.model)
            if math.isfinite(left) and not left > limit:
                return compressed
            warnings.warn(
                f"the {attempt} repair was not taken: {_told(left, limit)}; cut less, or pass more calibration images",
                RuntimeWarning,
                stacklevel=3,
            )
        return self.compress(kept)

    def _distilled(self, compressed: Compressed, repair: Repair, on_step: OnStep | None) -> nn.Module:
        """Trained to compute what the dense network does, if that holds on images that it was not trained on."""
        start, images = time.perf_counter(), count_images(self._calibration)
        held = min(GUARD_IMAGES, -(-images // HELD_OUT)) if repair.guard else 0
        learnt = later_images(self._calibration, held)
        task = partial(distilled, compressed, self.dense, learnt, self.context.objective)
        found, reason = compressed.model, "there are no other calibration images to learn from"
        try:
            if learnt:
                found = task(passes=repair.distill, seed=self.context.seed, on_step=on_step)
                reason = self._worse(compressed.model, found, held) if held else ""
        except DivergedError as error:
            reason = str(error)
        self.seconds["repair"] += time.perf_counter() - start
        if not reason:
            return found
        warnings.warn(f"the distillation was not taken: {reason}", RuntimeWarning, stacklevel=3)
        return compressed.model

    def _worse(self, before: nn.Module, after: nn.Module, images: int) -> str:
        """Why the second network is no nearer to the dense one than the first, on so many images; "" where it is."""
        distance = self._distances(images)
        least, most = distance(after), distance(before)
        if math.isfinite(least) and least <= max(most, distance.rounding):
            return ""
        return f"{_told(least, most)}, on {images} calibration images that it has not learnt from; pass more of them"

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

    def _distances(self, images: int) -> Distance:
        """On the first so many calibration images."""
        if images not in self._guards:
            chosen = first_images(self._calibration, images)
            self._guards[images] = Distance(self.dense, chosen, self.context.objective.features)
        return self._guards[images]

    @cached_property
    def _told_if_alike(self) -> bool:
        """Whether all calibration images are one and the same: said once, for no comparison on them could tell."""
        first = leaves(taken(self._calibration[0][0], slice(1)))
        for inputs, _ in self._calibration:
            for number in range(count(inputs)):
                one = leaves(taken(inputs, slice(number, number + 1)))
                if any(not torch.equal(part, first[name]) for name, part in one.items()):
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


class Distance:
    """Mean squared distance of a network's outputs from the dense network's, on some images."""

    def __init__(self, dense: nn.Module, images: Batches, features: Callable[[Any], Tensor]):
        self._dense, self._images, self._features = dense, images, features

    def __call__(self, model: nn.Module) -> float:
        """Of a network."""
        found = logits(model, self._images, self._features)
        return float((found - self._wanted).square().sum(1).mean())

    @property
    def rounding(self) -> float:
        """A distance that is none."""
        return ROUNDING**2 * float(self._wanted.square().sum(1).mean())

    @cached_property
    def _wanted(self) -> Tensor:
        return logits(self._dense, self._images, self._features)


def _told(distance: float, limit: float) -> str:
    what = "the squared distance of the outputs from the dense network's"
    return f"{what} is {distance:.4g} with it and {limit:.4g} without"
