"""What torch's functions do to labels where no layer's weight is in it: element by element, by place, in sums."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .follower import Call, Fold, Follower, rule
from .tensors import at_first, distinct

ADDITIONS = frozenset({"add", "radd", "iadd", "sub", "subtract", "rsub", "isub"})
_ANY_STRIDES: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


@rule(
    *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh"),
    *("leaky_relu", "rrelu", "softplus", "softsign", "logsigmoid", "tanhshrink", "hardshrink", "softshrink"),
    *("threshold", "sigmoid", "tanh", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "pow", "rpow"),
    *("abs", "neg", "negative", "positive", "reciprocal", "clamp", "clip", "clamp_min", "clamp_max", "sin", "cos"),
    *("erf", "erfc", "sign", "floor", "ceil", "round", "trunc", "nan_to_num", "isnan", "isfinite", "ipow"),
    *ADDITIONS,
    *("mul", "multiply", "rmul", "imul", "div", "divide", "true_divide", "rdiv", "rtruediv", "truediv", "itruediv"),
    *("idiv", "floordiv", "rfloordiv", "floor_divide", "remainder", "fmod", "mod", "maximum", "minimum", "fmax"),
    *("where", "addcmul", "addcdiv", "lerp", "masked_fill", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "float", "half", "double", "bfloat16", "to", "type", "type_as"),
    *("fmin", "clone", "contiguous", "detach", "requires_grad", "copy", "gt", "lt", "ge", "le", "eq", "ne", "and"),
    *(
        "or",
        "logical_and",
        "logical_or",
        "logical_not",
        "invert",
        "xor",
        "cpu",
        "cuda",
        "fill_diagonal",
        "atan",
        "asin",
    ),
)
def elementwise(follower: Follower, called: Call) -> None:
    """Element by element: operands that meet are of one channel."""
    labels = [label for label in map(follower.of, called.tensors) if label is not None]
    if not labels or not called.outputs:
        return
    together = labels[0]
    for other in labels[1:]:
        together = follower.unite(together, other)
    for out in called.outputs:
        if together.dim() <= out.dim():
            follower.put(out, together.expand(out.shape))
    if called.name in ADDITIONS and len([label for label in labels if not follower.constant(label)]) > 1:
        follower.trace.sums.append(distinct(together))


@rule(
    *("reshape", "view", "flatten", "ravel", "unflatten", "permute", "transpose", "t", "T", "mT", "H", "mH", "adjoint"),
    *("movedim", "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand", "expand_as", "view_as"),
    *("reshape_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "cat", "concat", "concatenate", "stack"),
    *("hstack", "vstack", "dstack", "narrow", "select", "index_select", "getitem", "gather", "take_along_dim", "roll"),
    *("flip", "fliplr", "flipud", "rot90", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("native_channel_shuffle", "unfold", "diagonal", "tril", "triu", "unbind", "split", "split_with_sizes", "chunk"),
    *("tensor_split", "data", "real", "broadcast_tensors", "iter", "masked_select", "as_strided"),
)
def movement(follower: Follower, called: Call) -> None:
    """Elements go to another place: their labels go there by the same call."""
    # labels do not lie in memory as their elements do
    function: Callable[..., Any] = _ANY_STRIDES.get(called.name, called.function)
    moved = function(*_labels(follower, called.args), **_labels(follower, called.kwargs))
    for out, labels in zip(_tensors(called.out), _tensors(moved), strict=False):
        found = labels.dtype == torch.float64 and bool(labels.any())  # integers and truth values moved as they are
        follower.put(out, labels if found else None)
    _note_folds(follower, called)


@rule("pad")
def padded(follower: Follower, called: Call) -> None:
    """As a movement, whatever it is padded with."""
    args = (
        *called.args[:2],
        *(["constant", 0] if called.argument(2, "mode", "constant") == "constant" else called.args[2:3]),
    )
    kwargs = {} if len(args) == 4 else {name: v for name, v in called.kwargs.items() if name == "mode"}
    movement(follower, Call("pad", called.function, args, kwargs, called.out))


@rule("setitem")
def assigned(follower: Follower, called: Call) -> None:
    """A part of a tensor is written."""
    target, index, value = called.args
    labels, written = follower.of(target), follower.of(value)
    if labels is None and written is None:
        return
    labels = torch.zeros(target.shape, dtype=torch.float64) if labels is None else labels.clone()
    labels[index] = 0.0 if written is None else written
    follower.put(target, labels)


@rule(
    *("mean", "sum", "prod", "amax", "amin", "max", "min", "std", "var", "norm", "vector_norm", "logsumexp", "nanmean"),
    *("softmax", "log_softmax", "softmin", "cumsum", "argmax", "argmin", "normalize", "median", "any", "all"),
    *("std_mean", "var_mean", "topk", "sort", "nansum", "frobenius_norm"),
)
def reduction(follower: Follower, called: Call) -> None:
    """Elements along some dimensions become one, or depend on one another."""
    if called.name in ("max", "min") and isinstance(called.argument(1, "other"), Tensor):
        elementwise(follower, called)
        return
    labels = follower.of(called.args[0]) if called.args else None
    if labels is None:
        return
    position = {"norm": 2, "normalize": 2, "vector_norm": 2, "topk": 2}.get(called.name, 1)
    default = {"normalize": 1, "topk": -1, "sort": -1}.get(called.name)
    dims = _dims(called.argument(position, "dim", called.kwargs.get("axis", default)), labels.dim())
    kept = follower.mixed(labels, dims)
    for out in called.outputs:
        if out.shape == labels.shape:
            follower.put(out, kept.expand(labels.shape))
        elif out.dim() == labels.dim():
            follower.put(out, kept.expand(out.shape))
        elif out.dim():
            follower.put(out, kept.squeeze(dims))


@rule(
    *(f"{how}_pool{n}d" for how in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)),
    *(f"{how}_pool{n}d_with_indices" for how in ("max", "adaptive_max") for n in (1, 2, 3)),
    *("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample"),
)
def pooling(follower: Follower, called: Call) -> None:
    """Positions become fewer or more; channels stay."""
    labels = follower.of(called.argument(0, "input"))
    if labels is None:
        return
    counted = re.search(r"pool(\d)d", called.name)
    spatial = int(counted[1]) if counted else labels.dim() - 2
    kept = follower.mixed(labels, range(labels.dim() - spatial, labels.dim()))
    for out in called.outputs:
        follower.put(out, kept.expand(out.shape))


@rule("roi_align")
def regions(follower: Follower, called: Call) -> None:
    """Positions of the images' maps become those of regions, which are rows; channels stay."""
    labels = follower.of(called.args[0])
    if labels is not None:
        kept = follower.mixed(labels, [0, 2, 3])
        follower.put(called.out, kept.expand(called.out.shape))


@rule("size", "shape", "dim", "numel", "is_floating_point", "device", "dtype", "ndim", "len", "item", "bool", "stride")
@rule("new_zeros", "new_ones", "new_empty", "new_full")
def told(_follower: Follower, _called: Call) -> None:
    """Nothing that holds a channel."""


def _note_folds(follower: Follower, called: Call) -> None:
    """Where a forward lays channels out in rows, or takes them in equal parts."""
    if called.name in ("chunk", "split", "tensor_split") and isinstance(called.out, list | tuple):
        parts = [label for label in map(follower.of, called.out) if label is not None]
        if len(parts) == len(called.out) and len({part.shape for part in parts}) == 1:
            fold(follower, parts, int(called.argument(2, "dim", 0)))
    elif called.name in ("channel_shuffle", "native_channel_shuffle"):
        labels = follower.of(called.args[0])
        if labels is not None:
            fold(follower, labels.chunk(int(called.argument(1, "groups")), 1), 1)
    elif called.name in ("reshape", "view", "unflatten") and isinstance(called.out, Tensor):
        labels = follower.of(called.out)
        if labels is not None:
            for first, last in _divided(called.args[0], called.out):
                _note_rows(follower, at_first(labels, *range(first, last + 1)))


def _note_rows(follower: Follower, labels: Tensor) -> None:
    """One dimension laid out as several: each of them counts rows, all behind it columns."""
    for dim in range(labels.dim() - 1):
        columns = labels[(0,) * (dim + 1)].numel()
        for table in labels.reshape(-1, labels.shape[dim], columns):
            if len(table) > 1 and len(distinct(table)) > 1:
                follower.trace.folds.append(Fold(table, follower.module[0]))


def _divided(source: Tensor, out: Tensor) -> list[tuple[int, int]]:
    """First and last of the dimensions of a reshape's result that were one dimension of its source."""
    found, i, j = [], 0, 0
    while i < source.dim() and j < out.dim():
        first, size = j, out.shape[j]
        while size < source.shape[i] and j + 1 < out.dim():
            j += 1
            size *= out.shape[j]
        if size != source.shape[i]:
            break  # it joins dimensions: what was in order stays in order
        if j > first:
            found.append((first, j))
        i, j = i + 1, j + 1
    return found


def fold(follower: Follower, parts: Sequence[Tensor], dim: int) -> None:
    """Equal parts of a forward's own: what is at one place of each goes together."""
    flat = torch.stack([at_first(part, dim % part.dim()) for part in parts])
    if len(parts) > 1 and bool((flat > 0).all()) and len(distinct(flat)) == flat.numel():
        follower.trace.folds.append(Fold(flat, follower.module[0], apart=True))


def _dims(given: Any, dims: int) -> list[int]:
    if given is None:
        return list(range(dims))
    return [d % dims for d in ([given] if isinstance(given, int) else given) if isinstance(d, int)]


def _labels(follower: Follower, tree: Any) -> Any:
    """The same arguments, labels in the place of floats."""

    def swapped(value: Any) -> Any:
        labels = follower.of(value)
        if not isinstance(value, Tensor) or (labels is None and not value.is_floating_point()):
            return value.cpu() if isinstance(value, Tensor) else value  # labels are there, wherever the network is
        return torch.zeros((), dtype=torch.float64).expand(value.shape) if labels is None else labels

    return tree_map(swapped, tree)


def _tensors(tree: Any) -> list[Tensor]:
    found = [tree] if isinstance(tree, Tensor) else list(tree) if isinstance(tree, list | tuple) else []
    return [value for value in found if isinstance(value, Tensor)]
