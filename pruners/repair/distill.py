"""Distillation without labels: what least squares left, trained end to end to compute the dense network's features.

A fit sees one layer and the images as they are; training sees all layers at once and as many images as shifts and flips
make of the few. The dense network says what should come out, so that no label is needed (Hinton, Vinyals & Dean 2015;
features: Romero et al., ICLR 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ...configs.training import FitConfig
from ...networks.copying import copied
from ...networks.inference import Batches, channels_last, count_images, group_sizes, regrouped
from ...training.augmentation import random_crop, random_flip
from ...training.distillation import Imitation, surroundings
from ...training.fit import OnStep, fit
from ...training.inputs import Inputs, count, picked, taken
from ...training.objective import Objective
from ...training.step import in_training
from ..method import Compressed

BATCH = 32  # images a step: of few images the number of steps counts
POOL = 1_000  # images in memory at a time, among which batches are drawn
SETTINGS = FitConfig(learning_rate=1e-3, optimizer="adamw", weight_decay=0.0, batch_size=BATCH, warmup=0.5)


def distilled(
    compressed: Compressed,
    dense: nn.Module,
    batches: Batches,
    objective: Objective,
    *,
    passes: int,
    seed: int,
    on_step: OnStep | None = None,
) -> nn.Module:
    """A copy of the smaller network, trained; in eval mode, as it is trained too: batch norms keep their statistics.

    Args:
        compressed: a network that is repaired already; not changed.
        dense: the dense network.
        batches: calibration images; their labels are not looked at.
        objective: whose features the outputs are compared by.
        passes: over the images.
        seed: of order, shifts and flips.
        on_step: called after every step with (step from 1, steps in all, the step's loss).

    Raises:
        DivergedError: a loss or a weight is not finite.
        ValueError: no parameter may be trained, or the network cannot be copied.
    """
    model, hold = copied(compressed.model), compressed.hold

    def after(step: int, total: int, loss: float) -> None:
        if hold is not None:
            hold(model)
        if on_step is not None:
            on_step(step, total, loss)

    images = _Augmented(batches, seed)
    config = SETTINGS.model_copy(update={"epochs": passes})
    watched = surroundings(compressed.model, dense, compressed.channels, taken(batches[0][0], slice(1)))
    task = Imitation(dense, objective, watched)
    with torch.enable_grad(), in_training(model, hold):
        still = [name for name, module in model.named_modules() if not isinstance(module, nn.RNNBase)]
        fit(model, images, config, seed=seed, objective=task, on_step=after, at_rest=still)
    if hold is not None:
        hold(model)
    return model


class _Augmented:
    """Walks the images once a pass, in another order every time, each shifted and mirrored at random.

    The caller's batches do not matter: images are drawn among the next `POOL`, and no batch is smaller than its
    neighbours by more than one.
    """

    def __init__(self, batches: Batches, seed: int):
        self._batches, self._seed, self._pass = batches, seed, 0

    def __len__(self) -> int:
        return sum(math.ceil(size / BATCH) for size in group_sizes(count_images(self._batches), POOL))

    def set_epoch(self, number: int) -> None:
        """Which pass, from 0, the next walk is."""
        self._pass = number

    def __iter__(self) -> Iterator[Inputs]:
        state = np.random.SeedSequence([self._seed, self._pass]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        for pool in regrouped(self._batches, POOL):
            order = torch.randperm(count(pool), generator=generator)
            for numbers in order.tensor_split(math.ceil(len(order) / BATCH)):
                yield channels_last(augmented(picked(pool, numbers.tolist()), generator))


def augmented(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Images moved by a few pixels, mirrored beyond the border, and flipped.

    Inputs that are not images, one tensor of floats (N, C, H, W), stay as they are.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    if min(inputs.shape[2:]) > 1:
        inputs = random_crop(inputs, generator, outside="reflect")
    return random_flip(inputs, generator)
