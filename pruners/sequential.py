"""Sequential least squares: layer after layer, on the features the pruned network really computes.

He, Zhang, Sun (ICCV 2017): inputs from the network pruned so far, targets from the dense one; where a consumer's
output joins a residual sum, its target is Y₁ − Y₁′ + Y₂, so that the *sum* matches and not only the branch.

One pass over the calibration images is enough. The dense and the pruned network walk the same torch.fx graph side
by side, node by node, all images at a time; a consumer is solved when its inputs are there, and what follows is
computed with its new weights. A residual sum's other operand is computed first, whatever the order of the code.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..networks.channel_pad import ChannelPad
from .layers import Selection, Structure
from .reconstruction import (
    RIDGE,
    Batches,
    Moments,
    Sampler,
    damping,
    following_norms,
    repairable,
    ridge_step,
    shift_output,
)

REFIT_RIDGE = 1e-2
_UNTRACEABLE = "sequential repair cannot follow this network's forward"
_REMEDY = "use pruning.final_repair=gram"
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE: dict[Any, Callable[..., Any]] = {operator.iadd: operator.add, operator.imul: operator.mul}


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer that is solved when the images reach it.

    Attributes:
        node: its call in the graph.
        name: its module.
        norm: the batch norm behind it, if any.
        other: the other operand of the residual sum its output joins, if any.
        cut: whether its own inputs were cut; if not, they only drifted (its producers were re-fitted or cut).
    """

    node: fx.Node
    name: str
    norm: str | None
    other: fx.Node | None
    cut: bool


class UntraceableError(ValueError):
    """The network cannot be walked as a torch.fx graph."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelPad) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The network's graph.

    Raises:
        UntraceableError: its forward depends on values (data-dependent control flow).
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # fx raises whatever the user's forward raises on a proxy
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UntraceableError(f"{_UNTRACEABLE} ({reason}); {_REMEDY}") from error


def repair_sequentially(
    pruned: nn.Module,
    dense: nn.Module,
    structure: Structure,
    selection: Selection,
    batches: Batches,
    *,
    refit: bool = False,
) -> None:
    """Re-fit every consumer whose inputs were cut, in the order the images reach them.

    Args:
        pruned: what `shrink` returned for this selection; changed in place.
        dense: the network it was cut from.
        structure: the dense network's layers.
        selection: for every layer the units that stay.
        batches: calibration images, (N, C, H, W) and labels.
        refit: also re-fit what sits before a cut: producers whose inputs drifted, with a ridge towards their old
            weights.

    Raises:
        UntraceableError: torch.fx cannot trace the network, or what it traces computes something else.
    """
    graph = trace(dense)
    kept = structure.kept_positions(selection)
    if not kept:
        return
    with torch.no_grad():  # not inference_mode: what is fitted becomes a parameter, and may be trained
        _check(graph, dense, batches[0][0][:1])
        sites = _sites(graph, dense, kept, following_norms(dense, batches[0][0][:1]), refit)
        _Walk(graph, dense, pruned, kept, sites).run([images for images, _ in batches])


def independent(samples: int, images: int) -> float:
    """How many independent samples so many positions of so many images are worth: half-way in the logarithm.

    Positions of an image see much the same. Counted in full, fits of MobileNetV3 (1,024 samples of 256 images, 576
    inputs) follow the calibration images, every next one follows what the last one made of them, and other images'
    logits end further off than without a repair. With one an image, ResNet-20 (128 positions) loses a point.
    A Gram repair counts in full: its inputs are the dense network's, no fit builds on another, and it loses by less.
    """
    return math.sqrt(samples * images)


def _check(graph: fx.Graph, dense: nn.Module, image: Tensor) -> None:
    """Make sure that the walk computes what the network does."""
    walk = _Walk(graph, dense, dense, {}, {})
    walk.run([image])
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not torch.allclose(walk.values[result]["dense"][0], dense(image), rtol=1e-3, atol=1e-4):
        raise UntraceableError(f"{_UNTRACEABLE} (it changes a tensor in place that is used again); {_REMEDY}")


def _sites(
    graph: fx.Graph, dense: nn.Module, kept: Mapping[tuple[str, int], Any], norms: Mapping[str, str], refit: bool
) -> dict[fx.Node, Site]:
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = []
    for name, nodes in calls.items():
        cut = (f"{name}.weight", 1) in kept
        if len(nodes) != 1 or not repairable(dense.get_submodule(name)) or not (cut or refit):
            continue  # a module that is called twice has no single input to be fitted to
        norm = norms.get(name)
        found.append(Site(nodes[0], name, norm, _other_operand(nodes[0], norm), cut))
    # Of two sites that join one sum only one can wait for the other: the one that has more weights to fit with.
    found.sort(key=lambda site: (not site.cut, -dense.get_parameter(f"{site.name}.weight")[0].numel()))
    sites: dict[fx.Node, Site] = {}
    for site in found:
        if site.other is not None and _needs(site.other, site.node, sites):
            site = replace(site, other=None)
        sites[site.node] = site
    return sites


def _other_operand(node: fx.Node, norm: str | None) -> fx.Node | None:
    """What a consumer's output, after its batch norm, is added to."""
    if norm is not None:
        node = next(iter(node.users))
    users = list(node.users)
    operands = summands(users[0]) if len(users) == 1 else []
    if not operands:
        return None
    return operands[1] if operands[0] is node else operands[0]


def summands(node: fx.Node) -> list[fx.Node]:
    """The two values that a node adds, or nothing if it does something else."""
    if node.target not in _ADDITIONS or node.kwargs:
        return []
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    return operands if len(operands) == 2 and operands[0] is not operands[1] else []


def _needs(node: fx.Node, wanted: fx.Node, sites: Mapping[fx.Node, Site]) -> bool:
    """Whether `wanted` must be computed before `node`."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top is wanted:
            return True
        if top not in seen:
            seen.add(top)
            stack += top.all_input_nodes
            site = sites.get(top)
            if site is not None and site.other is not None:
                stack.append(site.other)
    return False


class _Walk:
    """The lockstep walk. Values are lists: one tensor a batch, dense and pruned apart."""

    def __init__(
        self,
        graph: fx.Graph,
        dense: nn.Module,
        pruned: nn.Module,
        kept: Mapping[tuple[str, int], Any],
        sites: Mapping[fx.Node, Site],
    ):
        self.graph = graph
        self.models = {"dense": dense, "pruned": pruned}
        self.kept = kept
        self.sites = sites
        self.values: dict[fx.Node, dict[str, list[Any]]] = {}
        self.waiting = {node: len(node.users) for node in graph.nodes}
        for site in sites.values():
            if site.other is not None:
                self.waiting[site.other] += 1  # the site looks at it before the sum does
        self.drifted = False
        self.count = 0

    def run(self, images: list[Tensor]) -> None:
        """Walk all nodes; consumers are solved on the way."""
        self.count = len(images)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = {"dense": images, "pruned": images}
            elif node.op != "output":
                self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> None:
        if node in self.values:
            return
        stack = [node]
        while stack:  # depth first, without recursion: networks are deeper than Python's stack
            top = stack[-1]
            needed = list(top.all_input_nodes)
            site = self.sites.get(top)
            if site is not None and site.other is not None:
                needed.append(site.other)
            missing = [n for n in needed if n not in self.values]
            if missing:
                stack += missing
                continue
            stack.pop()
            if top not in self.values:
                self._compute(top)

    def _compute(self, node: fx.Node) -> None:
        dense = self._call(node, "dense")
        site = self.sites.get(node)
        if site is not None and (site.cut or self.drifted):
            self._solve(site, dense)
            self.drifted = True
        self.values[node] = {"dense": dense, "pruned": self._call(node, "pruned")}
        used = list(node.all_input_nodes)
        if site is not None and site.other is not None:
            used.append(site.other)
        for before in used:
            self.waiting[before] -= 1
            if self.waiting[before] == 0:
                del self.values[before]
                self.values[before] = {}  # known, but no longer held

    def _call(self, node: fx.Node, which: str) -> list[Any]:
        model = self.models[which]
        inputs = {n: self.values[n][which] for n in node.all_input_nodes}
        results = []
        for i in range(self.count):
            one = {n: values[i] for n, values in inputs.items()}
            args, kwargs = fx.map_arg((node.args, node.kwargs), one.__getitem__)
            results.append(_apply(model, node, args, kwargs))
        return results

    def _solve(self, site: Site, dense_outputs: list[Tensor]) -> None:
        pruned = self.models["pruned"]
        module: Any = pruned.get_submodule(site.name)
        source = site.node.all_input_nodes[0]
        rows = self._rows(f"{site.name}.weight")
        gain = self._gain(site, dense_outputs[0])
        moments, sampler = Moments(), Sampler(module)
        channels = -1 if isinstance(module, nn.Linear) else 1
        for i, (x, y) in enumerate(zip(self.values[source]["pruned"], dense_outputs, strict=True)):
            target = y if rows is None else y.index_select(channels, rows)
            if site.other is not None and gain is not None:
                other = self.values[site.other]
                missing = other["dense"][i] if rows is None else other["dense"][i].index_select(channels, rows)
                target = target + (missing - other["pruned"][i]) * gain
            moments.add(sampler.inputs(x), sampler.outputs(target))
        weight = sampler.weight(module.weight.detach())
        intercept = module.bias is not None or site.norm is not None
        mean_x, mean_t, xx, xt = moments.centered()
        if not intercept:
            xx, xt = moments.raw()
        samples = independent(moments.count, sum(len(x) for x in self.values[source]["pruned"]))
        ridge = damping(samples, xx.shape[-1], RIDGE if site.cut else REFIT_RIDGE)
        step = ridge_step(xx, xt - xx @ weight.transpose(1, 2), ridge)
        fitted = weight + step.transpose(1, 2)
        module.weight.data = sampler.unweight(fitted, module.weight)
        if intercept:
            bias = 0.0 if module.bias is None else module.bias.detach().double()
            shift = (mean_t - (fitted @ mean_x.unsqueeze(2)).squeeze(2)).flatten() - bias
            shift_output(pruned, site.name, site.norm, shift)

    def _rows(self, weight: str) -> Tensor | None:
        rows = self.kept.get((weight, 0))
        return None if rows is None else torch.from_numpy(rows)

    def _gain(self, site: Site, output: Tensor) -> Tensor | None:
        """Output of the consumer per unit of the sum: 1 over the batch norm's slope, 0 where it is flat."""
        if site.other is None:
            return None
        other = self.values[site.other]["dense"][0]
        if not isinstance(other, Tensor) or other.shape != output.shape:
            return None  # a constant, which does not drift, or something broadcast
        dims = [1, -1] + [1] * (output.dim() - 2)
        if site.norm is None:
            return torch.ones([1] * len(dims))
        norm: Any = self.models["pruned"].get_submodule(site.norm)
        slope = (1.0 if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()
        flat = slope.abs() <= 1e-3 * slope.abs().max()
        return torch.where(flat, 0.0, 1.0 / slope).reshape(dims)


def _apply(model: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One node, never in place: values stay as their other users expect them."""
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            module.inplace = False
            try:
                return module(*args, **kwargs)
            finally:
                module.inplace = True
        return module(*args, **kwargs)
    if node.op == "call_function":
        if "inplace" in kwargs:
            kwargs = {**kwargs, "inplace": False}
        function: Any = node.target
        return _IN_PLACE.get(function, function)(*args, **kwargs)
    if node.op == "call_method":
        name = str(node.target)
        method = name.removesuffix("_") if name in ("add_", "mul_", "relu_", "clamp_") else name
        return getattr(args[0], method)(*args[1:], **kwargs)
    assert node.op == "get_attr"
    value: Any = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value
