"""What a batch holds, whatever its form: inputs that a network is called with, outputs, targets.

Inputs are a tensor (N, …); a list of N tensors, one an image (images of different sizes); a tuple or a dict of such,
which the network takes as several arguments, by position or by name. Outputs and targets nest tensors in any way.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Any
"""A tensor, a list of tensors, or a tuple or dict of those."""

InputShape = Any
"""(C, H, W) of one image, or what `shape_of` says of inputs that are not one tensor of floats."""


@dataclasses.dataclass(frozen=True)
class Integers:
    """The shape of one image's integers or truth values (token ids, masks), how large they get, and their type."""

    shape: tuple[int, ...]
    most: int
    dtype: str = "int64"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a detector says of some images.

    Attributes:
        heads: as `Detector.heads` gives them.
        found: for each image `boxes` (n, 4), `labels` (n,), `scores` (n,), and what else it finds.
        labels: that a box can have.
    """

    heads: Mapping[str, Tensor]
    found: Sequence[Mapping[str, Tensor]]
    labels: range


class Detector(nn.Module):
    """A network whose answers differ in size from image to image (boxes that survive a threshold and each other).

    Its forward stays what it is: losses of (images, targets) in training mode, boxes otherwise. Beside that it says
    what its boxes are made from, which is of one size for every image, and can be followed, compared and repaired.
    """

    def heads(self, images: Any) -> dict[str, Tensor]:
        """Scores and boxes before any is chosen, each (N, rows, …), of a list of images or of (N, C, H, W)."""
        raise NotImplementedError

    def answer(self, images: Any) -> Answer:
        """What it finds, in evaluation mode, and what its heads said."""
        raise NotImplementedError


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The network on its inputs: a tuple as several arguments, a dict as named ones, all else as one.

    Of a detector, what its heads say.
    """
    run: Callable[..., Any] = model.heads if isinstance(model, Detector) else model
    if isinstance(inputs, Mapping):
        return run(**inputs)
    return run(*inputs) if isinstance(inputs, tuple) else run(inputs)


def leaves(tree: Any) -> dict[str, Tensor]:
    """Every tensor of nested outputs or targets, by its path: `out`, `aux`, `0.boxes`; "" for a tensor alone."""
    if isinstance(tree, Tensor):
        return {"": tree}
    found = {}
    for key, part in parts(tree):
        for path, tensor in leaves(part).items():
            found[f"{key}.{path}".strip(".")] = tensor
    return found


def parts(tree: Any) -> list[tuple[str, Any]]:
    """The entries of a dict, list, tuple, named tuple or dataclass; nothing of anything else."""
    if isinstance(tree, Mapping):
        return [(str(key), part) for key, part in tree.items()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        return [(str(number), part) for number, part in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return []


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same lists, tuples and dicts, the function of every tensor; what is no tensor stays as it is."""
    return _rebuilt(tree, lambda part: mapped(function, part), function)


def count(tree: Inputs) -> int:
    """How many images they are: the length of the first tensor, or of a list.

    Raises:
        ValueError: there is no tensor among them.
    """
    if isinstance(tree, list):
        return len(tree)
    if isinstance(tree, Tensor):
        return len(tree) if tree.dim() else 1
    for _, part in parts(tree):
        return count(part)
    raise ValueError(f"holds {describe(tree)}: expected a tensor, a list of tensors, or a tuple or dict of those")


def taken(tree: Any, which: slice) -> Any:
    """Some of the images: their rows of every tensor, their entries of every list."""
    if isinstance(tree, list):
        return tree[which]
    return _rebuilt(tree, lambda part: taken(part, which), lambda tensor: tensor[which])


def picked(tree: Any, order: Sequence[int]) -> Any:
    """The images of these numbers, in this order."""
    if isinstance(tree, list):
        return [tree[number] for number in order]
    at = torch.as_tensor(order, dtype=torch.int64)
    return _rebuilt(tree, lambda part: picked(part, order), lambda tensor: tensor[at.to(tensor.device)])


def joined(trees: Iterable[Any]) -> Any:
    """Batches of one form as one batch."""
    trees = list(trees)
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat(trees)
    if isinstance(first, list):
        return [entry for tree in trees for entry in tree]
    columns = {key: joined([dict(parts(tree))[key] for tree in trees]) for key, _ in parts(first)}
    return columns if isinstance(first, Mapping) else tuple(columns.values())


def flat(outputs: Any) -> Tensor:
    """(N, d) all that a network computes for each image: its outputs of floats, side by side.

    Raises:
        ValueError: there are none, or they are not one row an image.
    """
    found = {path: tensor for path, tensor in leaves(outputs).items() if tensor.is_floating_point() and tensor.dim()}
    lengths = {len(tensor) for tensor in found.values()}
    if len(lengths) != 1:
        raise ValueError(
            f"the network returns {describe(outputs)}: expected tensors of floats with a row for each image"
        )
    tensors = [tensor if tensor.dim() == 2 else tensor.reshape(len(tensor), -1) for tensor in found.values()]
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.float() for tensor in tensors], dim=1)


def describe(tree: Any) -> str:
    """For a message: type and shape of everything in it, in a line."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    tensors = leaves(tree)
    inside = ", ".join(f"{path} {describe(tensor)}" for path, tensor in list(tensors.items())[:4])
    more = f" and {len(tensors) - 4} more" if len(tensors) > 4 else ""
    return f"a {type(tree).__name__}" + (f" ({inside}{more})" if inside else "")


def integers(tensor: Tensor) -> bool:
    """Whether it holds integers, and not truth values."""
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def essential(tensor: Tensor) -> list[int]:
    """The sizes behind the first that are not 1."""
    return [size for size in tensor.shape[1:] if size != 1]


def shape_of(inputs: Inputs) -> InputShape:
    """What `random_inputs` needs to make others like them: for one tensor of floats the shape of one image."""
    if isinstance(inputs, Tensor):
        shape = tuple(inputs.shape[1:])
        return shape if inputs.is_floating_point() else Integers(shape, int(inputs.max()), str(inputs.dtype)[6:])
    if isinstance(inputs, list):
        return [tuple(inputs[0].shape)]
    shapes = {key: shape_of(part) for key, part in parts(inputs)}
    return shapes if isinstance(inputs, Mapping) else tuple(shapes.values())


def as_shape(given: InputShape) -> InputShape:
    """A shape as it is kept: sizes in a tuple, whatever sequence they came in."""
    if isinstance(given, Sequence) and all(isinstance(size, int) for size in given):
        return tuple(given)
    return given


def random_inputs(shape: InputShape, images: int, generator: torch.Generator) -> Inputs:
    """Inputs of a shape: floats from a normal distribution, integers evenly from 0 to the largest seen."""
    shape = as_shape(shape)
    if isinstance(shape, Integers):
        drawn = torch.randint(0, shape.most + 1, (images, *shape.shape), generator=generator)
        return drawn.to(getattr(torch, shape.dtype))
    if isinstance(shape, Mapping):
        return {key: random_inputs(part, images, generator) for key, part in shape.items()}
    if isinstance(shape, list):
        return [torch.randn(*shape[0], generator=generator) for _ in range(images)]
    if all(isinstance(size, int) for size in shape):
        return torch.randn(images, *shape, generator=generator)
    return tuple(random_inputs(part, images, generator) for part in shape)


def as_json(shape: InputShape) -> Any:
    """For a file: lists of sizes, nested as the inputs are."""
    if isinstance(shape, Integers):
        return dataclasses.asdict(shape)
    if isinstance(shape, Mapping):
        return {key: as_json(part) for key, part in shape.items()}
    return [part if isinstance(part, int) else as_json(part) for part in shape]


def check_json(tree: Any) -> Any:
    """What `as_json` writes, as it was read.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(tree, dict) and tree.keys() == {field.name for field in dataclasses.fields(Integers)}:
        sizes, known = tree["shape"], isinstance(tree["most"], int) and hasattr(torch, str(tree["dtype"]))
    else:
        sizes, known = tree, isinstance(tree, list | dict)
    if not known:
        raise ValueError(f"{tree!r} is no shape of inputs: expected sizes, (C, H, W) say, or lists or a dict of such")
    for part in sizes.values() if isinstance(sizes, dict) else sizes:
        if isinstance(part, bool) or not isinstance(part, int):
            check_json(part)
        elif part < 1:
            raise ValueError(f"the shape of inputs has a size of {part}: must be 1 or more")
    return tree


def told(shape: InputShape) -> str:
    """A shape for a person: 3×32×32."""
    if isinstance(shape, Integers):
        return "×".join(map(str, shape.shape)) + " " + shape.dtype
    if isinstance(shape, Mapping):
        return ", ".join(f"{key} {told(part)}" for key, part in shape.items())
    if isinstance(shape, list):
        return "any size"
    return (
        ", ".join(map(told, shape)) if any(not isinstance(size, int) for size in shape) else "×".join(map(str, shape))
    )


def _rebuilt(tree: Any, part: Callable[[Any], Any], tensor: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return tensor(tree)
    if isinstance(tree, Mapping):
        return {key: part(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        made = [part(value) for value in tree]
        if isinstance(tree, list):
            return made
        return type(tree)(*made) if hasattr(tree, "_fields") else tuple(made)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        found = copy.copy(tree)
        for name, value in parts(tree):
            object.__setattr__(found, name, part(value))  # frozen, perhaps
        return found
    return tree
