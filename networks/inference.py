"""Running a network over batches of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..training import inputs
from ..training.inputs import Inputs, InputShape, call, flat, leaves, mapped, random_inputs, told
from ..training.objective import Objective
from ..training.tasks import DEFAULT

Batches = Sequence[tuple[Inputs, Any]]
"""Inputs and targets: of images (N, C, H, W) and labels (N,), or whatever the objective takes."""

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a forward, where shapes do not fit


def channels_last(inputs: Inputs) -> Any:
    """The memory format that convolutions on a CPU like best: up to half as fast again, the same numbers."""
    if not isinstance(inputs, Tensor):
        return mapped(channels_last, inputs)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def first_images(batches: Batches, count: int) -> Batches:
    """Whole batches from the front that hold at least `count` images, or all there are."""
    taken = 0
    for i, (images, _) in enumerate(batches):
        taken += inputs.count(images)
        if taken >= count:
            return batches[: i + 1]
    return batches


def count_images(batches: Batches) -> int:
    """How many images the batches hold."""
    return sum(inputs.count(images) for images, _ in batches)


@torch.inference_mode()
def logits(model: nn.Module, batches: Batches, of: Callable[[Any], Tensor] = flat) -> Tensor:
    """(images, d) over all batches: what the network returns, or what the function (an objective's `features`) says."""
    return torch.cat([of(call(model, images)) for images, _ in batches])


@torch.inference_mode()
def statistics(model: nn.Module, batches: Batches, objective: Objective) -> Tensor:
    """(images, …) over all batches, of which `Objective.total` is the measure."""
    return torch.cat([objective.statistics(call(model, images), targets) for images, targets in batches])


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
        with torch.inference_mode():
            output = call(model, example)
    except FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {told(input_shape)}: {reason}") from error
    flat(output)
    return example
