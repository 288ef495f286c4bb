"""What torch's functions do to channels, by kind: see `labels.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..training.inputs import Inputs, call, leaves
from .channel_pad import ChannelPad
from .labels import Call, Fold, Follower, Trace, distinct, rule
from .world import without_fast_attention

ADDITIONS = frozenset({"add", "radd", "iadd", "sub", "subtract", "rsub", "isub"})
_ANY_STRIDES = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


@rule(
    *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh"),
    *("leaky_relu", "rrelu", "softplus", "softsign", "logsigmoid", "tanhshrink", "hardshrink", "softshrink"),
    *("threshold", "sigmoid", "tanh", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "pow", "rpow"),
    *("abs", "neg", "negative", "positive", "reciprocal", "clamp", "clip", "clamp_min", "clamp_max", "sin", "cos"),
    *("erf", "erfc", "sign", "floor", "ceil", "round", "trunc", "nan_to_num", "isnan", "isfinite", "ipow"),
    *ADDITIONS,
    *("mul", "multiply", "rmul", "imul", "div", "divide", "true_divide", "rdiv", "rtruediv", "truediv", "itruediv"),
    *("idiv", "floordiv", "rfloordiv", "floor_divide", "remainder", "fmod", "mod", "maximum", "minimum", "fmax", "fmin"),
    *("where", "addcmul", "addcdiv", "lerp", "masked_fill", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_alpha_dropout", "float", "half", "double", "bfloat16", "to", "type", "type_as"),
    *("clone", "contiguous", "detach", "requires_grad", "copy", "gt", "lt", "ge", "le", "eq", "ne", "and", "or"),
    *("logical_and", "logical_or", "logical_not", "invert", "xor", "cpu", "cuda", "fill_diagonal", "atan", "asin"),
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
        if torch.broadcast_shapes(together.shape, out.shape) == out.shape:
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
    function = _ANY_STRIDES.get(called.name, called.function)  # labels do not lie in memory as their elements do
    moved = function(*_labels(follower, called.args), **_labels(follower, called.kwargs))
    for out, labels in zip(_tensors(called.out), _tensors(moved), strict=False):
        follower.put(out, labels if bool(labels.any()) else None)
    _note_folds(follower, called)


@rule("pad")
def padded(follower: Follower, called: Call) -> None:
    """As a movement, whatever it is padded with."""
    args = (*called.args[:2], *(["constant", 0] if called.argument(2, "mode", "constant") == "constant" else called.args[2:3]))
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
    dims = _dims(called.argument(position, "dim", default), labels.dim())
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


@rule("batch_norm", "instance_norm")
def channelwise_norm(follower: Follower, called: Call) -> None:
    """Channel by channel, with parameters and statistics of each."""
    labels = follower.of(called.argument(0, "input"))
    if labels is None:
        return
    channels = follower.ends(labels, 1)
    for position, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        own = follower.of(called.argument(position, name))
        if own is not None:
            channels = follower.unite(channels, own)
    follower.put(called.out, _along(channels, 1, labels.dim()).expand(labels.shape))


@rule("group_norm")
def group_norm(follower: Follower, called: Call) -> None:
    """Channels of a group go together."""
    labels = follower.of(called.argument(0, "input"))
    if labels is None:
        return
    groups = int(called.argument(1, "num_groups"))
    parts = labels.reshape(labels.shape[0], groups, labels.shape[1] // groups, *labels.shape[2:])
    together = follower.mixed(parts, range(2, parts.dim())).expand(parts.shape).reshape(labels.shape)
    for position, name in enumerate(("weight", "bias"), start=2):
        own = follower.of(called.argument(position, name))
        if own is not None:
            together = follower.unite(together, _along(own, 1, labels.dim()))
    follower.use(together)
    follower.put(called.out, together)


@rule("layer_norm", "rms_norm", "local_response_norm")
def across_channels(follower: Follower, called: Call) -> None:
    """What is left of the channels would be normalised otherwise; positions alone may be."""
    labels = follower.of(called.argument(0, "input"))
    if labels is None:
        return
    shape = called.argument(1, "normalized_shape")
    dims = [1] if called.name == "local_response_norm" else range(labels.dim() - len(shape), labels.dim())
    name, module = follower.module
    if not torch.equal(follower.mixed(labels, list(dims)).expand(labels.shape), labels):
        follower.block(labels, f"it runs through {name or 'the network'}, a {type(module).__name__}")
    for position, parameter in enumerate(("weight", "bias"), start=2):
        own = follower.of(called.argument(position, parameter))
        if own is not None:
            labels = follower.unite(labels, own)
    follower.put(called.out, labels)


@rule("prelu")
def prelu(follower: Follower, called: Call) -> None:
    """One slope for all, or one a channel."""
    labels = follower.of(called.args[0])
    if labels is None:
        return
    own = follower.of(called.argument(1, "weight"))
    if own is not None and own.numel() > 1:
        labels = follower.unite(labels, _along(own, 1, labels.dim()))
    follower.put(called.out, labels)


@rule("glu")
def glu(follower: Follower, called: Call) -> None:
    """One half gates the other."""
    labels = follower.of(called.args[0])
    if labels is not None:
        dim = called.argument(1, "dim", -1)
        first, second = labels.chunk(2, dim)
        follower.put(called.out, follower.unite(first, second))
        _fold(follower, [first, second], dim)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
def layer(follower: Follower, called: Call) -> None:
    """A layer's weight: the channels of its input end here, its own begin."""
    x, weight, bias = called.args[0], called.argument(1, "weight"), called.argument(2, "bias")
    labels, name = follower.of(x), follower.weight(weight)
    if name is None:
        if labels is not None:
            follower.block(labels, f"it runs through {called.name}{follower.place}, whose weight is no layer's")
        return
    linear, transposed = called.name == "linear", "transpose" in called.name
    groups = 1 if linear else int(called.argument(6, "groups", 1))
    channel = x.dim() - 1 if linear else 1
    outputs, inputs = (1, 0) if transposed else (0, 1)
    width = called.out.shape[channel]
    depthwise = groups > 1 and groups == x.shape[1]
    if depthwise:
        own = follower.dim(name, 0, weight.shape[0], "through")
        made = own.repeat_interleave(width // groups) if transposed else own
    else:
        made = follower.dim(name, outputs, weight.shape[outputs], "out")
        if transposed:
            made = made.repeat(groups)
        elif groups > 1:
            made = made.reshape(groups, -1)[0].repeat(groups)
            follower.unite(follower.trace.dims[name, 0], made)
    if labels is not None:
        taken = follower.ends(labels, channel)
        if depthwise:
            made = follower.unite(taken.repeat_interleave(width // groups), made)
        else:
            own = follower.dim(name, inputs, weight.shape[inputs], "in")
            if transposed and groups > 1:
                first = own.reshape(groups, -1)[0].repeat(groups)
                follower.unite(own, first)
                own = first
            follower.unite(taken, own if transposed else own.repeat(groups))
    bias_name = follower.weight(bias) if bias is not None else None
    if bias_name is not None:
        follower.unite(follower.dim(bias_name, 0, width, "through" if depthwise else "out"), made)
    follower.put(called.out, _along(made, channel, called.out.dim()).expand(called.out.shape))


@rule("embedding")
def embedding(follower: Follower, called: Call) -> None:
    """Rows of a table: their columns are channels, which the table does not tell apart by row."""
    table = called.argument(1, "weight")
    name = follower.name(table)
    if name is not None:
        own = follower.dim(name, 1, table.shape[1], "through")
        follower.put(called.out, own.expand(called.out.shape))


@rule("matmul", "bmm", "rmatmul")
def product(follower: Follower, called: Call) -> None:
    """Of two activations: what one selects of the other, or all of it together (attention's heads)."""
    left, right = called.args[:2] if called.name != "rmatmul" else called.args[1::-1]
    if left.dim() < 2 or right.dim() < 2:
        follower.lose(called)
        return
    follower.put(called.out, _product(follower, follower.of(left), follower.of(right), left, right, called.out))


@rule("scaled_dot_product_attention")
def attention(follower: Follower, called: Call) -> None:
    """softmax(q kᵀ) v, head by head."""
    q, k, v = (called.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    labels = [follower.of(tensor) for tensor in (q, k, v)]
    keys = None if labels[1] is None else labels[1].transpose(-2, -1)
    scores = torch.zeros((), dtype=torch.float64).expand(*q.shape[:-1], k.shape[-2])
    found = _product(follower, labels[0], keys, q, k.transpose(-2, -1), scores)
    mask = follower.of(called.argument(3, "attn_mask"))
    if mask is not None and found is not None:
        found = follower.unite(found, mask)
    follower.put(called.out, _product(follower, found, labels[2], scores, v, called.out))


@rule("multi_head_attention_forward")
def fused_attention(follower: Follower, called: Call) -> None:
    """nn.MultiheadAttention: its input's channels end, its heads are channels, its output's begin."""
    name, module = follower.module
    inputs = [label for label in map(follower.of, called.args[:3]) if label is not None]
    if type(module) is not nn.MultiheadAttention or module.in_proj_weight is None or module.bias_k is not None:
        follower.lose(called)
        return
    width, heads = module.embed_dim, module.num_heads
    taken = follower.dim(f"{name}.in_proj_weight", 1, width, "in")
    for labels in inputs:
        follower.unite(follower.ends(labels, labels.dim() - 1), taken)
    head = follower.fresh(heads).repeat_interleave(width // heads)
    rows = follower.dim(f"{name}.in_proj_weight", 0, 3 * width, "out")
    follower.unite(rows, head.repeat(3))
    if module.in_proj_bias is not None:
        follower.unite(follower.dim(f"{name}.in_proj_bias", 0, 3 * width, "out"), head.repeat(3))
    follower.use(head)
    follower.unite(follower.dim(f"{name}.out_proj.weight", 1, width, "in"), head)
    made = follower.dim(f"{name}.out_proj.weight", 0, width, "out")
    if module.out_proj.bias is not None:
        follower.unite(follower.dim(f"{name}.out_proj.bias", 0, width, "out"), made)
    query, key = called.args[:2]
    follower.trace.products.append((head, 2 * math.prod(query.shape) * key.shape[0], name))
    follower.trace.folds.append(Fold(head.reshape(heads, -1), name))
    follower.put(called.out[0], made.expand(called.out[0].shape))


@rule("size", "shape", "dim", "numel", "is_floating_point", "device", "dtype", "ndim", "len", "item", "bool", "stride")
def told(_follower: Follower, _called: Call) -> None:
    """Nothing that holds a channel."""


def _product(
    follower: Follower, some: Tensor | None, others: Tensor | None, left: Tensor, right: Tensor, out: Tensor
) -> Tensor | None:
    """Labels of (…, n, k) @ (…, k, m), by batch element."""
    if some is None and others is None:
        return None
    none = torch.zeros((), dtype=torch.float64)
    some = none.expand(left.shape) if some is None else some
    others = none.expand(right.shape) if others is None else others
    rows, columns = follower.mixed(some, [some.dim() - 1]), follower.mixed(others, [others.dim() - 2])
    follower.use(rows)
    follower.use(columns)
    whole = rows.expand(some.shape).equal(some) and columns.expand(others.shape).equal(others)
    one_row = follower.mixed(rows, [rows.dim() - 2])
    one_column = follower.mixed(columns, [columns.dim() - 1])
    if whole and one_row.expand(rows.shape).equal(rows):
        labels = follower.unite(one_row, columns)
    elif whole and one_column.expand(columns.shape).equal(columns):
        labels = follower.unite(rows, one_column)
    else:
        labels = follower.unite(one_row, one_column)
    follower.use(labels)
    flops = out.numel() * left.shape[-1]
    follower.trace.products.append((distinct(labels), flops, follower.module[0]))
    return labels.expand(out.shape)


def _note_folds(follower: Follower, called: Call) -> None:
    """Where a forward lays channels out in rows, or takes them in equal parts."""
    if called.name in ("chunk", "split", "tensor_split") and isinstance(called.out, list | tuple):
        parts = [label for label in map(follower.of, called.out) if label is not None]
        if len(parts) == len(called.out) and len({part.shape for part in parts}) == 1:
            _fold(follower, parts, int(called.argument(2, "dim", 0)))
    elif called.name in ("reshape", "view", "unflatten") and isinstance(called.out, Tensor):
        labels = follower.of(called.out)
        for first, last in _divided(called.args[0], called.out) if labels is not None else ():
            assert labels is not None
            flat = _first(labels, *range(first, last + 1))
            for dim in range(flat.dim() - 1):
                tables = flat.flatten(0, dim).reshape(-1, flat.shape[dim], flat[(0,) * (dim + 1)].numel())
                for table in tables:
                    if len(table) > 1 and len(table.unique()) > 1:
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


def _fold(follower: Follower, parts: Sequence[Tensor], dim: int) -> None:
    """Equal parts of a forward's own: what is at one place of each goes together."""
    flat = torch.stack([_first(part, dim % part.dim()) for part in parts])
    if len(parts) > 1 and bool((flat > 0).all()) and len(flat.unique()) == flat.numel():
        follower.trace.folds.append(Fold(flat, follower.module[0], apart=True))


def _first(labels: Tensor, *dims: int) -> Tensor:
    """Labels along some dimensions, at the first place of all others."""
    for dim in reversed(range(labels.dim())):
        if dim not in dims:
            labels = labels.select(dim, 0)
    return labels


def _along(labels: Tensor, dim: int, dims: int) -> Tensor:
    """(n,) as a tensor of so many dimensions that broadcasts along all but one."""
    return labels.reshape([-1 if d == dim else 1 for d in range(dims)])


def _dims(given: Any, dims: int) -> list[int]:
    if given is None:
        return list(range(dims))
    return [d % dims for d in ([given] if isinstance(given, int) else given) if isinstance(d, int)]


def _labels(follower: Follower, tree: Any) -> Any:
    """The same arguments, labels in the place of floats."""

    def swapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        labels = follower.of(value)
        return torch.zeros((), dtype=torch.float64).expand(value.shape) if labels is None else labels

    return tree_map(swapped, tree)


def _tensors(tree: Any) -> list[Tensor]:
    found = [tree] if isinstance(tree, Tensor) else list(tree) if isinstance(tree, list | tuple) else []
    return [value for value in found if isinstance(value, Tensor)]


def follow(model: nn.Module, example: Inputs) -> Trace:
    """What becomes of every channel of a network, by one forward pass.

    Args:
        model: in eval mode; hooks are put on it and taken off again.
        example: images (N, C, H, W), or what else it takes.
    """
    follower = Follower(model)
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(follower.entering(name)))
        hooks.append(module.register_forward_hook(follower.leaving))
    try:
        with torch.no_grad(), without_fast_attention(), follower:
            outputs = call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    for tensor in leaves(outputs).values():
        labels = follower.of(tensor)
        if labels is not None:
            follower.block(labels, "it is the network's output")
    return follower.trace
