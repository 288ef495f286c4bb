"""Find a network's layers: which channels are coupled, and which cannot be cut.

The only module that knows Torch-Pruning. Its `DependencyGraph` traces the network through autograd; every group
it reports is then checked by cutting half of it and comparing the smaller network's outputs with the masked one's.
A group that fails is left whole, and named.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from ...configs import Cut
from ...networks.channel_pad import ChannelPad
from ...networks.norms import CONVOLUTIONS
from ..costs.counts import ChannelCost, count_operations, uncounted_flops
from ..scope import choices_of, ignored_names, tied_names
from ..structure import CostModel, PlanError
from .shrink import mask, shrink
from .slices import SOURCE, ChannelLayer, ChannelStructure, Role, Slice

NORMS = (nn.modules.batchnorm._BatchNorm,)
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of a forward, where shapes do not fit
_UNTRACED = "its coupling could not be traced"


def find_layers(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    cut: Cut = "inner",
    ignore: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    round_to: int | Mapping[str, int] = 1,
) -> ChannelStructure:
    """The layers of a network, in the order of execution.

    Args:
        model: any network of convolutions and linear layers; left as it was.
        input_shape: (C, H, W) of one image.
        cut: `inner` leaves residual trunks whole; `sampled` does, too, but lets every convolution that opens a
            residual branch take only some of the trunk's channels (He, Zhang, Sun, ICCV 2017); `all` cuts trunks.
        ignore: layers to leave whole, by name, pattern or type; see `ignored_names`.
        tie: groups of layers, by name or pattern, whose units go together: one step of the walk.
        round_to: units kept are a multiple of it, for all layers or by pattern.

    Raises:
        ValueError: the network does not run on such an image, or returns no single tensor.
        PlanError: nothing can be cut, or a name fits no layer.
    """
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        example = example_images(model, input_shape)
        operations = count_operations(model, example)
        layers, ignored = _trace(model, example, [op.module for op in operations])
        if cut == "sampled":
            layers += _sampled(model, layers)
        layers.sort(key=lambda layer: ([op.module for op in operations].index(layer.module), not layer.sampled))
        layers, ignored = _choose(model, layers, ignored, cut, ignore)
        layers = [replace(layer, choices=choices_of(layer.name, layer.units, round_to)) for layer in _tied(layers, tie)]
        structure = ChannelStructure(
            layers=tuple(layers),
            costs={},
            ignored=ignored,
            operations=tuple(operations),
            shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
            input_shape=tuple(input_shape),
        )
        structure = _verified(model, structure, example)
        if not structure.layers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(structure.ignored.items())[:3])
            raise PlanError(
                f"nothing in this network can be cut ({reasons or 'no convolution or linear layer inside'})"
            )
        return replace(structure, costs=channel_costs(structure, uncounted_flops(model, example, operations)))
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


def channel_costs(structure: ChannelStructure, uncounted: int = 0) -> dict[str, CostModel]:
    """FLOPs and parameters as functions of what is kept.

    Args:
        structure: with layers, operations and shapes.
        uncounted: multiply-accumulates an image that no convolution or linear layer accounts for.
    """
    factors = {f"{op.module}.weight": op.positions for op in structure.operations}
    tied = sum(op.flops for op in structure.operations if f"{op.module}.weight" not in structure.shapes)
    return {
        "flops": ChannelCost(structure.layers, structure.shapes, factors, tied + uncounted),
        "params": ChannelCost(structure.layers, structure.shapes, dict.fromkeys(structure.shapes, 1)),
    }


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
        with torch.inference_mode():
            output = model(example)
    except _FAILURES as error:
        shape = "×".join(map(str, input_shape))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the network does not run on images of {shape}: {reason}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"the network returns {type(output).__name__}, not one tensor of logits: wrap it in a module")
    return example


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


def _trace(model: nn.Module, example: Tensor, order: Sequence[str]) -> tuple[list[ChannelLayer], dict[str, str]]:
    names = {module: name for name, module in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    layers: list[ChannelLayer] = []
    ignored: dict[str, str] = {}
    with _gradients(model), _forgiving_reshapes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph()
        try:
            graph.build_dependency(model, example, customized_pruners={ChannelPad: _PadPruner()}, verbose=False)
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
            _leave_whole(ignored, name, producers, str(reason))
    return layers, ignored


def _sampled(model: nn.Module, layers: Sequence[ChannelLayer]) -> list[ChannelLayer]:
    """A layer for every convolution that takes a trunk's channels and does not lead back into a trunk: a shortcut's
    own projection is left alone."""
    back = {part.module for layer in layers if layer.trunk for part in layer.weights("out")}
    uses = Counter(part.module for layer in layers for part in layer.weights("in"))
    found = []
    for layer in layers:
        for part in layer.weights("in") if layer.trunk else ():
            module = model.get_submodule(part.module)
            if type(module) is nn.Conv2d and module.groups == 1 and uses[part.module] == 1 and part.module not in back:
                source = Slice(part.module, SOURCE, 0, "through", part.positions, part.size)
                found.append(
                    ChannelLayer(name=f"{part.module}.input", units=layer.units, slices=(part, source), sampled=True)
                )
    return found


def _leave_whole(ignored: dict[str, str], name: str, producers: Sequence[str], reason: str) -> None:
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
        except _FAILURES as error:
            ignored[names[module]] = f"{_UNTRACED} ({type(error).__name__}: {error})"
            continue
        seen |= {item.dep.target.module for item in group if graph.is_out_channel_pruning_fn(item.dep.handler)}
        yield group


@contextlib.contextmanager
def _bounded(most: int, widest: int) -> Iterator[None]:
    """Ends the walk of Torch-Pruning that would go on for ever, and take all memory (rolled, or padded in a circle)."""
    original = tp.dependency.Group.add_dep

    def add_dep(group: Any, dep: Any, idxs: Any) -> None:
        if len(group) > most or len(idxs) > widest:
            raise _CannotCutError(f"{_UNTRACED}: it runs in a circle")
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


@contextlib.contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with torch.enable_grad():
            for parameter, _ in before:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


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


def _choose(
    model: nn.Module, layers: list[ChannelLayer], ignored: dict[str, str], cut: str, ignore: Sequence[str]
) -> tuple[list[ChannelLayer], dict[str, str]]:
    excluded = ignored_names(model, {layer.name: [layer.name, *layer.producers] for layer in layers}, ignore)
    chosen = []
    for layer in layers:
        if layer.name in excluded:
            reason = "excluded by the config"
        elif layer.trunk and cut != "all":
            reason = "it is a residual trunk (layers.cut=all cuts it too)"
        elif layer.units < 2:
            reason = "it is one unit wide"
        else:
            chosen.append(layer)
            continue
        _leave_whole(ignored, layer.name, layer.producers, reason)
    return chosen, ignored


def _tied(layers: list[ChannelLayer], groups: Sequence[Sequence[str]]) -> list[ChannelLayer]:
    """The layers with each group as one, in the place of its first."""
    known = {layer.name: layer for layer in layers}
    for names in tied_names(list(known), groups):
        first, *others = (known[name] for name in names)
        for other in others:
            if other.units != first.units:
                raise PlanError(
                    f"layers.tie: {first.name} has {first.units} units and {other.name} {other.units}: "
                    "only layers of equally many can be tied"
                )
            del known[other.name]
        slices = tuple(part for layer in (first, *others) for part in layer.slices)
        known[first.name] = replace(first, slices=slices, trunk=any(x.trunk for x in (first, *others)))
    return list(known.values())


def _verified(model: nn.Module, structure: ChannelStructure, example: Tensor) -> ChannelStructure:
    """Leave out every layer whose cut network does not compute what the masked one computes."""
    if not structure.layers or _agrees(model, structure, example):
        return structure
    good = []
    ignored = dict(structure.ignored)
    for layer in structure.layers:
        if _agrees(model, replace(structure, layers=(layer,)), example):
            good.append(layer)
        else:
            reason = f"cutting it does not give what masking it gives: {_UNTRACED}"
            _leave_whole(ignored, layer.name, layer.producers, reason)
    while good and not _agrees(model, replace(structure, layers=tuple(good)), example):
        last = good.pop()
        _leave_whole(ignored, last.name, last.producers, "it cannot be cut together with the layers before it")
    return replace(structure, layers=tuple(good), ignored=ignored)


def _agrees(model: nn.Module, structure: ChannelStructure, example: Tensor) -> bool:
    return all(_agrees_once(model, structure, example, seed) for seed in range(3))


def _agrees_once(model: nn.Module, structure: ChannelStructure, example: Tensor, seed: int) -> bool:
    """For a random selection: kept differ from layer to layer, so that no shape fits by accident."""
    rng = np.random.default_rng(seed)
    selection = []
    for layer in structure.layers:
        width = int(rng.integers(max(1, layer.units // 2), layer.units))
        selection.append(np.sort(rng.choice(layer.units, size=width, replace=False)))
    with torch.inference_mode():
        expected = mask(model, structure, selection)(example)
        try:
            actual = shrink(model, structure, selection)(example)
        except _FAILURES:
            return False
    if actual.shape != expected.shape:
        return False
    off = (actual - expected).abs().max()
    spread = (expected - expected.mean(0)).abs().max()  # what the images say, however small: all else is a constant
    return bool(off <= 1e-3 * spread + 1e-5 * expected.abs().max())
