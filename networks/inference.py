"""Running a network over batches of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batches as Batches
from .batches import LazyBatches, labels_of, mapped

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a forward, where shapes do not fit


def channels_last(tensor: Tensor) -> Tensor:
    """The memory format that convolutions on a CPU like best: up to half as fast again, the same numbers."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def in_channels_last(batches: Batches) -> LazyBatches:
    """The batches in that memory format, each brought into it when it is looked at."""
    return mapped(batches, channels_last)


def first_images(batches: Batches, count: int) -> Batches:
    """The first `count` images, or all there are, in their batches; of the last one only as many as are missing."""
    labels = labels_of(batches)
    ends = np.cumsum([len(part) for part in labels])
    last = int(np.searchsorted(ends, count))
    if count <= 0 or last == len(batches):
        return batches[: len(batches) if count > 0 else 0]
    missing = count - int(ends[last]) + len(labels[last])
    images = partial(_of_the_last_only, batches, last, missing)
    return LazyBatches(images, [*labels[:last], labels[last][:missing]], range(last + 1))


def _of_the_last_only(batches: Batches, last: int, count: int, number: int) -> Tensor:
    images = batches[number][0]
    return images[:count] if number == last else images


def regrouped(batches: Batches, size: int) -> Iterator[Tensor]:
    """The same images `size` at a time, whatever their batches were.

    The last group is smaller where they do not divide, but never a single image: that one goes with those before it.
    """
    whole, rest = divmod(count_images(batches), size)
    sizes = [size] * whole + [rest] * (rest > 0)
    if rest == 1 and whole:
        sizes[-2:] = [size + 1]
    left = iter(images for images, _ in batches)
    held: list[Tensor] = []
    for wanted in sizes:
        while sum(map(len, held)) < wanted:
            held.append(next(left))
        joined = held[0] if len(held) == 1 else torch.cat(held)
        yield joined[:wanted]
        held = [joined[wanted:]]


def count_images(batches: Batches) -> int:
    """How many images the batches hold."""
    return sum(map(len, labels_of(batches)))


@torch.no_grad()
def logits(model: nn.Module, batches: Batches) -> Tensor:
    """(images, classes) outputs over all batches."""
    return torch.cat([model(images) for images, _ in batches])


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Top-1 in per cent."""
    labels = torch.cat(labels_of(batches))
    return 100.0 * float((logits(model, batches).argmax(1) == labels).double().mean())


def example_images(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Two random images (2, C, H, W) on the network's device, that it has been seen to run on.

    Raises:
        ValueError: the network does not run on such an image, or returns no single tensor.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, *input_shape, generator=generator).to(device)
    try:
        with torch.no_grad():
            output = model(example)
    except FAILURES as error:
        shape = "×".join(map(str, input_shape))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {shape}: {reason}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"the network returns {type(output).__name__}, not one tensor of logits: wrap it in a module")
    return example
