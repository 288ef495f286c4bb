"""One method on one network, and what its rules look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..configs.schema import LayersConfig
from ..networks.inference import Batches, first_images, logits
from ..pruners.context import Context
from ..pruners.costs.counts import uncounted_flops
from ..pruners.method import Method
from ..pruners.structure import Kept, Structure
from .rules import require

TOLERANCE = 1e-3  # of the logits' spread; `secateur apply` asks for the same
PLANS = 3  # random ones, beside the smallest


@dataclass(frozen=True)
class Case:
    """One method on one network.

    Attributes:
        method: that is checked.
        model: the dense network.
        images: calibration images and labels, in batches.
        config: what the user says of the layers.
        seed: of the random plans.
    """

    method: Method
    model: nn.Module
    images: Batches
    config: LayersConfig
    seed: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images[0][0].shape[1:])

    @cached_property
    def structure(self) -> Structure:
        """The layers that the method finds."""
        return self.method.find(self.model, self.input_shape, self.config)

    @cached_property
    def context(self) -> Context:
        """What the method is shown."""
        return self.fresh()

    def fresh(self) -> Context:
        """A context that nothing was computed for yet."""
        return Context(self.model, self.structure, self.images, "", self.seed)

    @cached_property
    def plans(self) -> list[Kept]:
        """(layers,) kept each: the smallest plan, and some at random."""
        rng = np.random.default_rng(self.seed)
        layers = self.structure.layers
        drawn = [[int(rng.choice(layer.choices)) for layer in layers] for _ in range(PLANS)]
        return [np.array(kept, dtype=np.int64) for kept in ([layer.choices[0] for layer in layers], *drawn)]

    def outputs(self, network: nn.Module) -> Tensor:
        """(images, classes)."""
        return logits(network, self.images)

    def difference(self, one: nn.Module, other: nn.Module) -> float:
        """The largest of two networks' outputs, over their spread."""
        expected = self.outputs(other)
        spread = expected.std().clamp_min(torch.finfo(expected.dtype).tiny)
        return float((self.outputs(one) - expected).abs().max() / spread)

    def require_same(self, one: nn.Module, other: nn.Module, what: str) -> None:
        """Two networks compute the same."""
        difference = self.difference(one, other)
        require(difference <= TOLERANCE, f"{what}: outputs differ by {difference:.2g} of their spread")

    def counted(self, network: nn.Module) -> int:
        """Multiply-accumulates an image, by torch's own counter."""
        return uncounted_flops(network, first_images(self.images, 1)[0][0][:1], ())
