"""Convolutions in groups: whole groups of them go, or the channels at equal places of every group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Grouped:
    """A call of a convolution in groups. Which of the two it is, what meets its channels elsewhere decides.

    Attributes:
        module: its name.
        groups: how many.
        inputs: (channels,) labels of what it is given, 0 where there is no channel.
        outputs: (channels,) labels of what it makes.
        inner: (channels of a group,) labels of its weight's second dimension, which all groups share: of the inputs
            of each, of a transposed convolution of the outputs.
        transposed: whether it is one.
    """

    module: str
    groups: int
    inputs: Tensor
    outputs: Tensor
    inner: Tensor
    transposed: bool

    @property
    def depthwise(self) -> bool:
        """Whether every group is of one input."""
        return len(self.inputs) == self.groups

    def goes_whole(self, channel: NDArray[np.int64]) -> bool:
        """Whether it is groups that go, given the channel that each label is of without this convolution.

        It is in a depthwise convolution, and where on one side the channels of every group are one already, but not
        those of all groups: behind attention's heads, in front of a norm of whole groups.
        """
        if self.depthwise:
            return True
        given, made = (channel[self._rows(side).long().numpy()] for side in (self.inputs, self.outputs))
        apart = (bool((rows == rows[:, :1]).all()) and len(np.unique(rows)) > 1 for rows in (given, made))
        return bool((given > 0).all()) and any(apart)

    def meetings(self, whole: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of labels that are of one channel: all of a group's, or else those at equal places."""
        sides = (self.inputs, self.outputs)
        if whole:
            first = self._rows(self.outputs)[:, :1]
            yield from ((first.expand_as(self._rows(side)), self._rows(side)) for side in sides)
        else:
            outer, shared = sides if self.transposed else sides[::-1]
            yield outer, self._rows(outer)[0].repeat(self.groups)
            yield shared, self.inner.repeat(self.groups)

    def _rows(self, side: Tensor) -> Tensor:
        return side.reshape(self.groups, -1)
