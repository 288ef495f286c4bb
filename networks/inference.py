"""Running a network over batches of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..training import inputs
from ..training.inputs import Inputs, InputShape, call, flat, joined, leaves, mapped, random_inputs, taken, told
from ..training.objective import Objective
from ..training.tasks import DEFAULT
from .batches import Batches as Batches
from .batches import LazyBatches, targets_of, with_images

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a forward, where shapes do not fit


def channels_last(inputs: Inputs) -> Any:
    """The memory format that convolutions on a CPU like best: up to half as fast again, the same numbers."""
    if not isinstance(inputs, Tensor):
        return mapped(channels_last, inputs)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def in_channels_last(batches: Batches) -> LazyBatches:
    """The batches in that memory format, each brought into it when it is looked at."""
    return with_images(batches, channels_last)


def first_images(batches: Batches, count: int) -> Batches:
    """The first `count` images, or all there are, in their batches; of the last one only as many as are missing."""
    targets = targets_of(batches)
    ends = np.cumsum([inputs.count(part) for part in targets])
    last = int(np.searchsorted(ends, count))
    if count <= 0 or last == len(batches):
        return batches[: len(batches) if count > 0 else 0]
    missing = count - int(ends[last]) + inputs.count(targets[last])
    images = partial(_of_the_last_only, batches, last, missing)
    return LazyBatches(images, [*targets[:last], taken(targets[last], slice(missing))], range(last + 1))


def later_images(batches: Batches, count: int) -> Batches:
    """All but the first `count` images, in their batches; of the first of these only those behind them."""
    targets = targets_of(batches)
    ends = np.cumsum([inputs.count(part) for part in targets])
    first = int(np.searchsorted(ends, count, side="right"))
    if count <= 0 or first == len(batches):
        return batches[first if count > 0 else 0 :]
    gone = count - int(ends[first]) + inputs.count(targets[first])
    images = partial(_of_the_first_less, batches, first, gone)
    cut = [*targets[:first], taken(targets[first], slice(gone, None)), *targets[first + 1 :]]
    return LazyBatches(images, cut, range(first, len(batches)))


def _of_the_first_less(batches: Batches, first: int, count: int, number: int) -> Inputs:
    images = batches[number][0]
    return taken(images, slice(count, None)) if number == first else images


def _of_the_last_only(batches: Batches, last: int, count: int, number: int) -> Inputs:
    images = batches[number][0]
    return taken(images, slice(count)) if number == last else images


def regrouped(batches: Batches, size: int) -> Iterator[Inputs]:
    """The same images `size` at a time, whatever their batches were.

    The last group is smaller where they do not divide, but never a single image: that one goes with those before it.
    """
    left = iter(images for images, _ in batches)
    held: list[Inputs] = []
    for wanted in group_sizes(count_images(batches), size):
        while sum(map(inputs.count, held)) < wanted:
            held.append(next(left))
        together = held[0] if len(held) == 1 else joined(held)
        yield taken(together, slice(wanted))
        held = [taken(together, slice(wanted, None))]


def group_sizes(images: int, size: int) -> list[int]:
    """How many images there are in each group of `regrouped`."""
    whole, rest = divmod(images, size)
    sizes = [size] * whole + [rest] * (rest > 0)
    return [*sizes[:-2], size + 1] if rest == 1 and whole else sizes


def count_images(batches: Batches) -> int:
    """How many images the batches hold."""
    return sum(map(inputs.count, targets_of(batches)))


@torch.no_grad()
def logits(model: nn.Module, batches: Batches, of: Callable[[Any], Tensor] = flat) -> Tensor:
    """(images, d) over all batches: what the network returns, or what the function (an objective's `features`) says."""
    return torch.cat([of(call(model, images)) for images, _ in batches])


@torch.no_grad()
def statistics(model: nn.Module, batches: Batches, objective: Objective) -> Tensor:
    """(images, …) over all batches, of which `Objective.total` is the measure."""
    return torch.cat([objective.statistics(objective.outputs(model, images), targets) for images, targets in batches])


def accuracy(model: nn.Module, batches: Batches, objective: Objective = DEFAULT) -> float:
    """The objective's measure, 0 … 100: top-1 in per cent where none is given."""
    return objective.total(statistics(model, batches, objective))


def alike(some: Any, others: Any, rtol: float = 1e-3, atol: float = 1e-4) -> bool:
    """Whether two networks' outputs, of whatever form, are the same but for rounding."""
    left, right = leaves(some), leaves(others)
    return left.keys() == right.keys() and all(_close(left[path], right[path], rtol, atol) for path in left)


def _close(one: Tensor, other: Tensor, rtol: float, atol: float) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=rtol, atol=atol)


def example_images(model: nn.Module, input_shape: InputShape) -> Inputs:
    """Two random images (2, C, H, W) on the network's device, that it has been seen to run on; or what else it takes.

    Raises:
        ValueError: the network does not run on such an image, or returns no row for each.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    drawn = random_inputs(input_shape, 2, torch.Generator().manual_seed(0))
    example = mapped(lambda tensor: tensor.to(device), drawn)
    try:
        with torch.no_grad():
            output = call(model, example)
    except FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {told(input_shape)}: {reason}") from error
    flat(output)
    return example
