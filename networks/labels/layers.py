"""What layers, norms and products do to labels: channels end there, and begin."""

from __future__ import annotations

import torch
from torch import Tensor

from .follower import Call, Follower, rule
from .grouped import Grouped
from .moves import fold
from .tensors import distinct, laid_along


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
    follower.put(called.out, laid_along(channels, 1, labels.dim()).expand(labels.shape))


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
            together = follower.unite(together, laid_along(own, 1, labels.dim()))
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
        labels = follower.unite(labels, laid_along(own, 1, labels.dim()))
    follower.put(called.out, labels)


@rule("glu")
def glu(follower: Follower, called: Call) -> None:
    """One half gates the other."""
    labels = follower.of(called.args[0])
    if labels is not None:
        dim = called.argument(1, "dim", -1)
        first, second = labels.chunk(2, dim)
        follower.put(called.out, follower.unite(first, second))
        fold(follower, [first, second], dim)


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
    constant = follower.name(x) is not None or (labels is not None and follower.constant(labels))
    made = own = follower.dim(name, outputs, weight.shape[outputs], "out", constant)
    taken = torch.zeros(x.shape[channel], dtype=torch.float64)
    if labels is not None:
        taken = follower.ends(labels, channel)
        if constant:
            follower.block(labels, "it computes a constant, whatever the images are")
    if labels is not None or groups > 1:
        seen = follower.dim(name, inputs, weight.shape[inputs], "in")
        if groups == 1 or transposed:
            follower.unite(taken, seen)
        if groups > 1:
            made = follower.fresh(called.out.shape[channel]) if transposed else own
            inner = own if transposed else seen
            follower.trace.grouped.append(Grouped(name.rpartition(".")[0], groups, taken, made, inner, transposed))
    bias_name = follower.weight(bias) if bias is not None else None
    if bias_name is not None:
        follower.unite(follower.dim(bias_name, 0, made.numel(), "out"), made)
    follower.put(called.out, laid_along(made, channel, called.out.dim()).expand(called.out.shape))


@rule("gru", "lstm", "rnn_tanh", "rnn_relu")
def recurrent(follower: Follower, called: Call) -> None:
    """A recurrent layer's input ends here; what it makes of it stays whole."""
    labels = follower.of(called.args[0])
    if labels is None:
        return
    taken = follower.ends(labels, labels.dim() - 1)
    for tensor in called.tensors:
        name = follower.name(tensor) or ""
        if name.removesuffix("_reverse").endswith("weight_ih_l0"):
            follower.unite(follower.dim(name, 1, tensor.shape[1], "in"), taken)


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
    follower.trace.products.append((distinct(labels), flops))
    return labels.expand(out.shape)
