"""Coupling groups as Torch-Pruning's dependency graph reports them; the only module that knows it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import nn

from ...networks.channel_pad import ChannelPad
from ...networks.inference import FAILURES
from ...networks.norms import CONVOLUTIONS
from ...training.inputs import Inputs, call, leaves
from ..structure import PlanError
from .slices import SOURCE, ChannelLayer, Role, Slice

NORMS = (nn.modules.batchnorm._BatchNorm,)


UNTRACED = "its coupling could not be traced"


class _PadPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Tells Torch-Pruning that a ChannelPad's inputs and outputs are two dimensions."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise AssertionError("groups are only read, never pruned here")

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        raise AssertionError("groups are only read, never pruned here")

    def get_out_channels(self, layer: ChannelPad) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: ChannelPad) -> int:
        return layer.in_channels


def trace_groups(model: nn.Module, example: Inputs, order: Sequence[str]) -> tuple[list[ChannelLayer], dict[str, str]]:
    """Every coupling group that can be cut, and why the others cannot.

    Args:
        model: in eval mode; a copy, of which all parameters are made to require gradients.
        example: images (N, C, H, W).
        order: names of its convolutions and linear layers, in the order of execution.

    Returns:
        Layers, and producer → reason for what is left whole.

    Raises:
        PlanError: Torch-Pruning cannot trace the network at all.
    """
    names = {module: name for name, module in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    layers: list[ChannelLayer] = []
    ignored: dict[str, str] = {}
    model.requires_grad_(True)
    with torch.enable_grad(), _forgiving_reshapes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph()
        try:
            graph.build_dependency(
                model,
                example,
                forward_fn=call,
                output_transform=lambda outputs: [
                    tensor for tensor in leaves(outputs).values() if tensor.requires_grad
                ],
                customized_pruners={ChannelPad: _PadPruner()},
                verbose=False,
            )
        except Exception as error:  # a reshaping it cannot follow makes it fail in any way there is
            raise PlanError(
                f"Torch-Pruning cannot trace this network ({type(error).__name__}: {error}): nothing can be cut"
            ) from error
        groups = list(_groups(graph, names, ignored))
    for group in groups:
        producers = _producers(graph, group, names)
        name = min(producers, key=order.index) if producers else names[group[0].dep.target.module]
        try:
            layers.append(_layer(graph, group, name, names, parameters))
        except _CannotCutError as reason:
            leave_whole(ignored, name, producers, str(reason))
    return layers, ignored


def leave_whole(ignored: dict[str, str], name: str, producers: Sequence[str], reason: str) -> None:
    """Name a group that is not cut, and everything that shares its channels."""
    ignored[name] = reason
    for other in producers:
        ignored.setdefault(other, f"it is coupled to {name}, which is left whole")


def _groups(graph: Any, names: dict[nn.Module, str], ignored: dict[str, str]) -> Iterator[Any]:
    """Every coupling group once; what cannot be followed goes to `ignored`."""
    seen: set[nn.Module] = set()
    most = 200 + 4 * sum(len(node.dependencies) for node in graph.module2node.values())
    widest = 4 * max((max(p.shape, default=1) for p in graph.model.parameters()), default=1)
    for module in list(graph.module2node):
        if module in seen or not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            continue
        pruner = graph.get_pruner_of_module(module)
        try:
            with _bounded(most, widest):
                group = graph.get_pruning_group(
                    module, pruner.prune_out_channels, list(range(pruner.get_out_channels(module)))
                )
        except _CannotCutError as reason:
            ignored[names[module]] = str(reason)
            continue
        except FAILURES as error:
            ignored[names[module]] = f"{UNTRACED} ({type(error).__name__}: {error})"
            continue
        seen |= {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
        yield group


@contextlib.contextmanager
def _bounded(most: int, widest: int) -> Iterator[None]:
    """Ends the walk of Torch-Pruning that would go on for ever, and take all memory (rolled, or padded in a circle)."""
    original = tp.dependency.Group.add_dep

    def add_dep(group: Any, dep: Any, idxs: Any) -> None:
        if len(group) > most or len(idxs) > widest:
            raise _CannotCutError(f"{UNTRACED}: it runs in a circle")
        original(group, dep, idxs)

    with _replaced(tp.dependency.Group, "add_dep", add_dep):
        yield


@contextlib.contextmanager
def _forgiving_reshapes() -> Iterator[None]:
    """A reshaping that Torch-Pruning fails on (a channel shuffle) is passed as it is, and not the end of the graph.

    What runs through it is traced wrongly, and weeded out by the check; the rest of the network can be cut.
    """
    original = tp.dependency.index_mapping.update_reshape_index_mapping

    def update(graph: Any, node: Any) -> None:
        with contextlib.suppress(ZeroDivisionError):
            original(graph, node)

    with _replaced(tp.dependency.index_mapping, "update_reshape_index_mapping", update):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., None]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _CannotCutError(Exception):
    """Why a coupling group is left whole."""


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels > 1


def _producers(graph: Any, group: Any, names: dict[nn.Module, str]) -> list[str]:
    return [
        names[item.dep.target.module]
        for item in group
        if isinstance(item.dep.target.module, (*CONVOLUTIONS, nn.Linear))
        and not _is_depthwise(item.dep.target.module)
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]


def _layer(graph: Any, group: Any, name: str, names: dict[nn.Module, str], parameters: dict[int, str]) -> ChannelLayer:
    channels = len(group[0].idxs)
    slices: list[Slice] = []
    divisor = 1
    adds = 0
    for item in group:
        module = item.dep.target.module
        if isinstance(module, tp.ops._OutputOp):
            raise _CannotCutError("it is the network's output")
        if isinstance(module, tp.ops._ElementWiseOp):
            inputs = [node.module for node in item.dep.target.inputs if not isinstance(node.module, nn.Parameter)]
            adds += "AddBackward" in str(module) and len(inputs) > 1  # not Addmm, and no position embedding
            continue
        if type(module).__module__ == tp.ops.__name__:
            continue
        positions = _positions(item, channels)
        is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
        if isinstance(module, CONVOLUTIONS) and module.groups > 1 and not _is_depthwise(module):
            divisor = int(np.lcm(divisor, module.groups))
        slices += _slices(module, names.get(module, ""), parameters.get(id(module), ""), positions, is_out)
    if not any(part.role == "in" for part in slices):
        raise _CannotCutError("it is the network's output")
    if divisor > 1:
        slices = [_grouped(part, channels, divisor) for part in slices]
    return ChannelLayer(name=name, units=channels // divisor, slices=tuple(slices), trunk=adds > 0)


def _positions(item: Any, channels: int) -> NDArray[np.int64]:
    """(channels, k): where each channel of the group lies along the member's dimension."""
    found: list[list[int]] = [[] for _ in range(channels)]
    for index, root in zip(item.idxs, item.root_idxs, strict=True):
        found[root].append(index)
    if len({len(indices) for indices in found}) != 1:
        raise _CannotCutError(f"its channels do not all reach {item.dep.target.name} alike")
    return np.array(found, dtype=np.int64)


def _slices(module: Any, name: str, parameter: str, positions: NDArray[np.int64], is_out: bool) -> list[Slice]:
    role: Role = "out" if is_out else "in"
    tensors: list[tuple[str, int]]
    if _is_depthwise(module):
        role, tensors = "through", [("weight", 0), ("bias", 0)]
    elif isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        tensors = [("weight", 0), ("bias", 0)] if is_out else [("weight", 1)]
    elif isinstance(module, NORMS):
        role, tensors = "through", [("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0)]
    elif isinstance(module, nn.PReLU):
        role, tensors = "through", [("weight", 0)] if module.num_parameters > 1 else []
    elif isinstance(module, ChannelPad):
        size = module.out_channels if is_out else module.in_channels
        return [Slice(name, SOURCE, 0 if is_out else 1, "through", positions, size)]
    elif isinstance(module, nn.Parameter):
        owner, _, tensor = parameter.rpartition(".")
        dims = [dim for dim, size in enumerate(module.shape) if size > 1]
        if len(dims) != 1:
            raise _CannotCutError(f"the parameter {parameter} of shape {tuple(module.shape)} is coupled to it")
        return [Slice(owner, tensor, dims[0], "through", positions, module.shape[dims[0]])]
    else:
        raise _CannotCutError(f"it runs through {name}, a {type(module).__name__}")
    slices = []
    for tensor, dim in tensors:
        value = getattr(module, tensor)
        if value is not None:
            indices = positions % value.shape[1] if dim == 1 else positions  # a grouped weight counts inside its group
            slices.append(Slice(name, tensor, dim, role, indices, value.shape[dim]))
    return slices


def _grouped(part: Slice, channels: int, divisor: int) -> Slice:
    """Units of one channel in every group, so that a grouped convolution stays one."""
    if channels % divisor:
        raise _CannotCutError(f"its {channels} channels do not divide into {divisor} groups")
    width = channels // divisor
    positions = part.positions.reshape(divisor, width, -1).transpose(1, 0, 2).reshape(width, -1)
    units = [np.unique(row) for row in positions]
    if len({len(row) for row in units}) != 1:
        raise _CannotCutError(f"its channels do not line up with the groups of {part.module}")
    return replace(part, positions=np.stack(units))
