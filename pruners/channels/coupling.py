"""Find a network's layers: which channels are coupled, and which cannot be cut.

Every group that is found (`dependency.py`) is then checked by cutting half of it and comparing the smaller network's
outputs with the masked one's. A group that fails is left whole, and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ...configs import Cut
from ...networks.checks import check_weights
from ...networks.copying import sharing
from ...networks.inference import FAILURES, example_images
from ...networks.world import undisturbed
from ...training.inputs import Inputs, InputShape, as_shape, call, flat
from ..costs.counts import BranchCost, ChannelCost, count_operations, uncounted_flops
from ..scope import choices_of, ignored_names, tied_names
from ..structure import CostModel, PlanError
from .branches import find_branches
from .dependency import UNTRACED, leave_whole, trace_groups
from .shrink import first_units, mask, shrink
from .slices import SOURCE, ChannelLayer, ChannelStructure, Selection, Slice

ONE = "its channels depend on one another (a mean, norm or shuffle over them): all go, or none"


@undisturbed()
def find_layers(
    model: nn.Module,
    input_shape: InputShape,
    *,
    cut: Cut = "inner",
    ignore: Sequence[str] = (),
    tie: Sequence[Sequence[str]] = (),
    round_to: int | Mapping[str, int] = 1,
    most: Callable[[str], float] | None = None,
) -> ChannelStructure:
    """The layers of a network, in the order of execution.

    Args:
        model: any network of convolutions and linear layers; left as it was.
        input_shape: (C, H, W) of one image, or what `shape_of` says of other inputs.
        cut: `inner` leaves residual trunks whole; `sampled` does, too, but lets every convolution that opens a
            residual branch take only some of the trunk's channels (He, Zhang, Sun, ICCV 2017); `all` cuts trunks.
        ignore: layers to leave whole, by name, pattern or type; see `ignored_names`.
        tie: groups of layers, by name or pattern, whose units go together: one step of the walk.
        round_to: units kept are a multiple of it, for all layers or by pattern.
        most: where residual branches may go altogether, the most sparsity of a layer (by name) whose branch stays.

    Raises:
        ValueError: the network does not run on such an image, or returns no row for each.
        PlanError: nothing can be cut, no branch can go where one may, or a name fits no layer.
    """
    check_weights(model)
    model = sharing(model).eval()
    example = example_images(model, input_shape)
    operations = count_operations(model, example)
    layers, ignored = trace_groups(model, example, [op.module for op in operations])
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
        input_shape=as_shape(input_shape),
        first_units=first_units,
    )
    structure = _verified(model, structure, example)
    if not structure.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(structure.ignored.items())[:3])
        raise PlanError(f"nothing in this network can be cut ({reasons or 'no convolution or linear layer inside'})")
    if most is not None:
        structure = _with_branches(model, structure, example, most)
    return replace(structure, costs=channel_costs(structure, uncounted_flops(model, example, operations)))


def channel_costs(structure: ChannelStructure, uncounted: int = 0) -> dict[str, CostModel]:
    """FLOPs and parameters as functions of what is kept.

    Args:
        structure: with layers, operations and shapes.
        uncounted: multiply-accumulates an image that no convolution or linear layer accounts for.
    """
    factors: Counter[str] = Counter()
    for op in structure.operations:
        factors[op.parameter] += op.positions
    by_unit = [layer.product_flops for layer in structure.layers]
    products = sum(layer.units * layer.product_flops for layer in structure.layers)
    tied = sum(op.flops for op in structure.operations if op.parameter not in structure.shapes)
    costs: dict[str, CostModel] = {
        "flops": ChannelCost(structure.layers, structure.shapes, factors, tied + uncounted - products, by_unit),
        "params": ChannelCost(structure.layers, structure.shapes, dict.fromkeys(structure.shapes, 1)),
    }
    if not structure.branches:
        return costs
    nothing = ChannelCost(structure.layers, {}, {})
    parts: dict[str, list[tuple[Sequence[int], CostModel, CostModel]]] = {kind: [] for kind in costs}
    for branch in structure.branches:
        layers = [structure.index(name) for name in branch.layers]
        own = {name: shape for name, shape in structure.shapes.items() if name.rpartition(".")[0] in branch.modules}
        outputs = {f"{branch.exit}.weight": own[f"{branch.exit}.weight"][:1]}  # as many numbers as it has
        constant = ChannelCost(structure.layers, outputs, dict.fromkeys(outputs, 1))
        parts["flops"].append((layers, ChannelCost(structure.layers, own, factors), nothing))
        parts["params"].append((layers, ChannelCost(structure.layers, own, dict.fromkeys(own, 1)), constant))
    return {kind: BranchCost(cost, parts[kind]) for kind, cost in costs.items()}


def _with_branches(
    model: nn.Module, structure: ChannelStructure, example: Inputs, most: Callable[[str], float]
) -> ChannelStructure:
    """With 0 among the choices of the layers of every branch that can go altogether.

    Raises:
        PlanError: there is none.
    """
    branches = find_branches(model, structure.layers, example)
    good = tuple(branch for branch in branches if _goes(model, replace(structure, branches=(branch,)), example))
    if not good:
        raise PlanError(
            "layers.branches: no residual branch of this network can go altogether (one that ends in a convolution or "
            "linear layer, with layers inside that can be cut): leave it out"
        )
    names = {name for branch in good for name in branch.layers}

    def choices(layer: ChannelLayer) -> tuple[int, ...]:
        least = (1.0 - most(layer.name)) * layer.units - 1e-9
        return (0, *(n for n in layer.choices if n >= least))

    layers = (replace(layer, choices=choices(layer)) if layer.name in names else layer for layer in structure.layers)
    return replace(structure, layers=tuple(layers), branches=good)


def _goes(model: nn.Module, structure: ChannelStructure, example: Inputs) -> bool:
    """Whether a network without a structure's one branch is what the masked one is."""
    (branch,) = structure.branches
    empty = np.zeros(0, dtype=np.int64)
    selection = [
        empty if layer.name in branch.layers else units
        for layer, units in zip(structure.layers, _some(structure, 0), strict=True)
    ]
    return _same(model, structure, selection, example)


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


def _choose(
    model: nn.Module, layers: list[ChannelLayer], ignored: dict[str, str], cut: str, ignore: Sequence[str]
) -> tuple[list[ChannelLayer], dict[str, str]]:
    excluded = ignored_names(model, {layer.name: [layer.name, *layer.producers] for layer in layers}, ignore, ignored)
    chosen = []
    for layer in layers:
        if layer.name in excluded:
            reason = "excluded by the config"
        elif layer.units < 2:
            reason = "it is one unit wide" if layer.weights("out")[0].size == 1 else ONE
        elif layer.trunk and cut != "all":
            reason = "it is a residual trunk (layers.cut=all cuts it too)"
        else:
            chosen.append(layer)
            continue
        leave_whole(ignored, layer.name, layer.producers, reason)
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
        together = (first, *others)
        known[first.name] = replace(
            first,
            slices=slices,
            trunk=any(layer.trunk for layer in together),
            product_flops=sum(layer.product_flops for layer in together),
        )
    return list(known.values())


def _verified(model: nn.Module, structure: ChannelStructure, example: Inputs) -> ChannelStructure:
    """Leave out every layer whose cut network does not compute what the masked one computes."""
    if not structure.layers or _agrees(model, structure, example):
        return structure
    good = []
    ignored = dict(structure.ignored)
    for layer in structure.layers:
        alone = replace(structure, layers=(layer,))
        if _agrees(model, alone, example):
            good.append(layer)
        else:
            reason = f"cutting it does not give what masking it gives: {UNTRACED}{_failing(model, alone, example)}"
            leave_whole(ignored, layer.name, layer.producers, reason)
    while good and not _agrees(model, replace(structure, layers=tuple(good)), example):
        last = good.pop()
        leave_whole(ignored, last.name, last.producers, "it cannot be cut together with the layers before it")
    return replace(structure, layers=tuple(good), ignored=ignored)


def _failing(model: nn.Module, structure: ChannelStructure, example: Inputs) -> str:
    """The end of a message: the module that does not run in the cut network, if it is to blame itself."""
    inside: list[str] = []
    try:
        small = shrink(model, structure, _some(structure, 0))
        for name, module in small.named_modules():
            module.register_forward_pre_hook(lambda *_call, name=name: inside.append(name))
            module.register_forward_hook(lambda *_call: inside.pop() and None)
        with torch.no_grad():
            call(small, example)
    except FAILURES as error:
        module = small.get_submodule(inside[-1]) if inside else nn.Identity()
        if "invalid for input of size" in str(error):  # torch's word for a reshape or view that does not fit
            where = f"{inside[-1]}, a {type(module).__name__}," if inside and inside[-1] else "its forward"
            return f" ({where} reshapes to a size that it takes from its input or a constant: make that size -1)"
        if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            return f" ({inside[-1]}, a {type(module).__name__}, does not run on what is left)"
    return ""


def _some(structure: ChannelStructure, seed: int) -> Selection:
    """A random selection: kept differ from layer to layer, so that no shape fits by accident."""
    rng = np.random.default_rng(seed)
    selection = []
    for layer in structure.layers:
        width = int(rng.integers(max(1, layer.units // 2), layer.units))
        selection.append(np.sort(rng.choice(layer.units, size=width, replace=False)))
    return selection


def _agrees(model: nn.Module, structure: ChannelStructure, example: Inputs) -> bool:
    return all(_agrees_once(model, structure, example, seed) for seed in range(3))


def _agrees_once(model: nn.Module, structure: ChannelStructure, example: Inputs, seed: int) -> bool:
    return _same(model, structure, _some(structure, seed), example)


def _same(model: nn.Module, structure: ChannelStructure, selection: Selection, example: Inputs) -> bool:
    with torch.no_grad():
        expected = flat(call(mask(model, structure, selection), example))
        try:
            actual = flat(call(shrink(model, structure, selection), example))
        except FAILURES:
            return False
    if actual.shape != expected.shape:
        return False
    off = (actual - expected).abs().max()
    spread = (expected - expected.mean(0)).abs().max()  # what the images say, however small: all else is a constant
    return bool(off <= 1e-3 * spread + 1e-5 * expected.abs().max())
