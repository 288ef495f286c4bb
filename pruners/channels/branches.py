"""Residual branches that may go altogether: where one of their layers keeps nothing, only a constant is left to add.

A branch is what a forward computes for one operand of a sum and for nothing else. Without any of its channels its last
layer says the same of every image: that constant, its mean output over the calibration images, is added instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from ...networks.constant import Constant
from ...networks.copying import rebuilt
from ...networks.graph import UntraceableError, trace
from ...networks.inference import Batches
from ...networks.norms import LAYERS, TRANSPOSED, channel_dim, following_norms
from ...training.inputs import Inputs, call, taken
from ..context import Context
from ..repair.sites import summands
from ..structure import Branch
from .slices import ChannelLayer

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)

Means = Mapping[str, Tensor]  # exit of a branch → (channels,) what is added in its place


@dataclass(frozen=True)
class _Operand:
    """What a sum's operand is computed by."""

    sum: fx.Node
    branch: Branch


def find_branches(model: nn.Module, layers: Sequence[ChannelLayer], example: Inputs) -> list[Branch]:
    """The branches whose inner layers are among these; none where torch.fx cannot follow the network.

    Of branches inside one another the innermost; of a sum of two branches neither, for without both nothing of the
    image would be left.

    Args:
        model: in eval mode.
        layers: that may be cut.
        example: images (N, C, H, W).
    """
    image = taken(example, slice(1))
    try:
        graph = trace(model, image)
    except UntraceableError:
        return []
    norms = following_norms(model, image)
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = [operand for node in graph.nodes for operand in _operands(node, graph, model, layers, norms)]
    found = [one for one in found if all(names[id(p)] == 1 for p in _parameters(model, one.branch))]
    first = {one.branch.modules: one for one in reversed(found)}  # a sum that is added to another is one operand of it
    inner = [one for one in first.values() if not any(modules < one.branch.modules for modules in first)]
    inner.sort(key=lambda one: list(graph.nodes).index(one.sum))
    return [one.branch for one in inner if sum(one.sum is other.sum for other in inner) == 1]


def without(model: nn.Module, branches: Iterable[Branch], means: Means | None = None) -> nn.Module:
    """A network with constants in the place of branches; other tensors are shared with `model`, buffers are copied.

    Args:
        model: the dense network; not changed.
        branches: that go.
        means: what is added; where there is none, what the branch's last bias says.
    """
    small = rebuilt(model, lambda _name, tensor: tensor)
    for branch in branches:
        for name in branch.inside:
            small.set_submodule(name, Constant(model.get_submodule(name)))
        small.set_submodule(branch.exit, Constant(model.get_submodule(branch.exit), constant_of(model, branch, means)))
        if branch.norm is not None:
            small.set_submodule(branch.norm, nn.Identity())
    return small.train(model.training)


def close(masked: nn.Module, branch: Branch, constant: Tensor) -> None:
    """Let a constant (channels,) come out of a branch whatever its layers compute, in place."""
    last = masked.get_submodule(branch.norm or branch.exit)
    last.register_forward_hook(partial(_instead, constant, channel_dim(masked.get_submodule(branch.exit))))


def constant_of(model: nn.Module, branch: Branch, means: Means | None = None) -> Tensor:
    """(channels,) what is added in the place of a branch; see `without`."""
    weight = model.get_submodule(branch.exit).get_parameter("weight")
    if means is not None:
        return means[branch.exit].to(weight)
    bias = getattr(model.get_submodule(branch.norm or branch.exit), "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else weight.new_zeros(len(weight))


def _instead(constant: Tensor, dim: int, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return constant.expand(output.movedim(dim, -1).shape).movedim(-1, dim).clone()


def mean_outputs(context: Context) -> Means:
    """Of every branch, over the calibration images, behind its batch norm; computed once a context."""
    if "branches" not in context.memo:
        with torch.no_grad():
            context.memo["branches"] = _mean_outputs(context.model, context.structure.branches, context.calibration)
    found: Means = context.memo["branches"]
    return found


def check_branches(model: nn.Module, branches: Iterable[Branch]) -> None:
    """Whether a network has them.

    Raises:
        ValueError: it has no such module, or not of that kind.
    """
    modules = dict(model.named_modules())
    for branch in branches:
        kinds = [(branch.exit, LAYERS), *((name, (*LAYERS, *_NORMS)) for name in branch.inside)]
        kinds += [(branch.norm, _NORMS)] if branch.norm is not None else []
        for name, kind in kinds:
            if not isinstance(modules.get(name), kind) or isinstance(modules[name], TRANSPOSED):
                raise ValueError(f"this network has no layer {name[:80]!r} of a branch")


def _mean_outputs(model: nn.Module, branches: Sequence[Branch], batches: Batches) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    places: Counter[str] = Counter()

    def add(name: str, dim: int, output: Tensor) -> None:
        rows = output.double().movedim(dim, -1).flatten(0, -2)
        sums[name] = sums.get(name, torch.zeros_like(rows[0])) + rows.sum(0)
        places[name] += len(rows)

    hooks = []
    for branch in branches:
        dim = channel_dim(model.get_submodule(branch.exit))
        module = model.get_submodule(branch.norm or branch.exit)
        hooks.append(module.register_forward_hook(lambda _m, _i, out, n=branch.exit, d=dim: add(n, d, out)))
    try:
        for inputs, _ in batches:
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / places[name] for name, total in sums.items()}


def _operands(
    node: fx.Node, graph: fx.Graph, model: nn.Module, layers: Sequence[ChannelLayer], norms: Mapping[str, str]
) -> Iterator[_Operand]:
    """The branches among what a node adds."""
    for operand in summands(node):
        alone = _for_nothing_else(operand, node, graph)
        elsewhere = {str(other.target) for other in graph.nodes if other not in alone}
        called = {str(part.target) for part in alone if part.op == "call_module"}
        names = frozenset(called - elsewhere)
        weighty = {name for name in called if any(True for _ in model.get_submodule(name).parameters())}
        inner = [
            layer.name
            for layer in layers
            if not (layer.trunk or layer.sampled) and all(part.module in names for part in layer.slices)
        ]
        last = _exit(operand, alone, model, norms)
        if not (weighty <= names and inner and last) or any(part.op == "placeholder" for part in alone):
            continue
        inside = tuple(sorted(weighty - {last, norms.get(last)}))
        known = (model.get_submodule(name) for name in inside)
        if all(isinstance(module, (*LAYERS, *_NORMS)) and not isinstance(module, TRANSPOSED) for module in known):
            yield _Operand(node, Branch(tuple(inner), last, norms.get(last), inside, names))


def _parameters(model: nn.Module, branch: Branch) -> Iterator[Tensor]:
    for name in sorted(branch.modules):
        yield from model.get_submodule(name).parameters()


def _for_nothing_else(operand: fx.Node, node: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values a sum's operand alone depends on, itself among them."""
    found: set[fx.Node] = set()
    for before in reversed(graph.nodes):
        users = set(before.users)
        if (before is operand and users == {node}) or (users and users <= found):
            found.add(before)
    return found


def _exit(node: fx.Node, alone: set[fx.Node], model: nn.Module, norms: Mapping[str, str]) -> str | None:
    """The layer by which a branch ends: behind it come its batch norm and what has no weights."""
    passed = set[str]()
    while node in alone:
        if node.op == "call_module":
            name, module = str(node.target), model.get_submodule(str(node.target))
            if isinstance(module, LAYERS):
                return name if passed <= {norms.get(name)} and not isinstance(module, TRANSPOSED) else None
            passed |= {name for _ in module.parameters()}
        before = [other for other in node.all_input_nodes if other in alone and other.op != "get_attr"]
        if len(before) != 1:
            return None
        (node,) = before
    return None
