"""Sequential least squares: layer after layer, on the features the pruned network really computes.

He, Zhang, Sun (ICCV 2017): inputs from the network pruned so far, targets from the dense one; where a consumer's
output joins a residual sum, its target is Y₁ − Y₁′ + Y₂, so that the *sum* matches and not only the branch.

One pass over the calibration images is enough. The pruned network walks its torch.fx graph node by node, all images at
a time; a consumer is solved when its inputs are there, and what follows is computed with its new weights. A residual
sum's other operand is computed first, whatever the order of the code. Of the dense network only samples of the outputs
are needed: they are kept where they are not too large, and otherwise it walks along.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...networks.graph import UntraceableError as UntraceableError
from ...networks.graph import Walk, trace
from ...networks.inference import Batches
from ...networks.norms import following_norms, shift_output
from ...training.inputs import Inputs, count, taken
from ..method import Compressed
from .solve import RIDGE, damping, fit
from .statistics import SAMPLES, Sampler, repairable

REFIT_RIDGE = 1e-2
HELD = 2**30  # bytes of the dense network's features that are kept for the next candidate
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer that is solved when the images reach it.

    Attributes:
        node: its call in the graph.
        name: its module.
        norm: the batch norm behind it, if any.
        other: the other operand of the residual sum its output joins, if any.
        inputs: weights of each of its outputs.
        cut: whether it was cut itself; if not, its inputs only drifted (its producers were re-fitted or cut).
    """

    node: fx.Node
    name: str
    norm: str | None
    other: fx.Node | None
    inputs: int
    cut: bool = False

    @property
    def nodes(self) -> list[fx.Node]:
        """What the dense network is asked for."""
        return [self.node] if self.other is None else [self.node, self.other]


class Feature(NamedTuple):
    """What the dense network computes at a site: (samples, channels) a batch, at the sampler's positions."""

    output: list[Tensor]
    other: list[Tensor] | None


class SequentialRepair:
    """The repair of networks cut from one dense network, on the same images; what they share is computed once.

    Attributes:
        dense: the network they are cut from, in eval mode.
        images: that repair, in batches.
    """

    def __init__(self, dense: nn.Module, batches: Batches, *, samples: int = SAMPLES, held: int = HELD):
        """Trace the network.

        Args:
            dense: the network, in eval mode.
            batches: calibration images, (N, C, H, W) and labels.
            samples: output positions an image that a fit looks at, at most.
            held: keep the dense network's features if they take no more than this many bytes.

        Raises:
            UntraceableError: torch.fx cannot trace the network, or what it traces computes something else.
        """
        self.dense = dense
        self.images = [images for images, _ in batches]
        self._samples = samples
        self._held = held
        self._example = taken(self.images[0], slice(1))
        self._graph = trace(dense, self._example)
        self._sites = _possible_sites(self._graph, dense, following_norms(dense, self._example))

    @torch.no_grad()  # not inference_mode: what is fitted becomes a parameter, and may be trained
    def __call__(self, compressed: Compressed, *, refit: bool = False) -> None:
        """Re-fit every module that was cut, in the order the images reach them.

        Args:
            compressed: its model is changed in place.
            refit: also re-fit what sits before a cut: producers whose inputs drifted, with a ridge towards their old
                weights.
        """
        if not compressed.cut:
            return
        sites = _chosen_sites(self._sites, compressed.cut, refit)
        features = self._source(sites.values())
        _PrunedWalk(self._graph, compressed, self.images, self._samples, sites, features).run()

    @cached_property
    @torch.no_grad()
    def bytes(self) -> int:
        """What the dense network's features take."""
        alone = self._walk([self._example], self._sites)
        tensors = [t for site in self._sites for part in alone.feature(site) if part is not None for t in part]
        return sum(t.numel() * t.element_size() for t in tensors) * sum(map(count, self.images))

    @cached_property
    def _features(self) -> Mapping[str, Feature]:
        walk = self._walk(self.images, self._sites)
        return {site.name: walk.feature(site) for site in self._sites}

    def _source(self, sites: Collection[Site]) -> Callable[[Site], Feature]:
        if self.bytes > self._held:
            return self._walk(self.images, sites).feature
        features = self._features
        return lambda site: features[site.name]

    def _walk(self, images: Sequence[Inputs], sites: Collection[Site]) -> _DenseWalk:
        reads = [node for site in sites for node in site.nodes]
        return _DenseWalk(self._graph, self.dense, images, self._samples, reads)


def repair_sequentially(compressed: Compressed, dense: nn.Module, batches: Batches, *, refit: bool = False) -> None:
    """`SequentialRepair` of one network alone.

    Args:
        compressed: its model is changed in place.
        dense: the network it was made from.
        batches: calibration images, (N, C, H, W) and labels.
        refit: also re-fit what sits before a cut.

    Raises:
        UntraceableError: torch.fx cannot trace the network, or what it traces computes something else.
    """
    SequentialRepair(dense, batches, held=0)(compressed, refit=refit)


def independent(samples: int, images: int) -> float:
    """How many independent samples so many positions of so many images are worth: half-way in the logarithm.

    Positions of an image see much the same. Counted in full, fits of MobileNetV3 (1,024 samples of 256 images, 576
    inputs) follow the calibration images, every next one follows what the last one made of them, and other images'
    logits end further off than without a repair. With one an image, ResNet-20 (128 positions) loses a point.
    A Gram repair counts in full: its inputs are the dense network's, no fit builds on another, and it loses by less.
    """
    return math.sqrt(samples * images)


def _possible_sites(graph: fx.Graph, dense: nn.Module, norms: Mapping[str, str]) -> list[Site]:
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    sites = []
    for name, nodes in calls.items():
        if len(nodes) == 1 and repairable(dense.get_submodule(name)):
            # a module that is called twice has no single input to be fitted to
            norm = norms.get(name)
            inputs = dense.get_parameter(f"{name}.weight")[0].numel()
            sites.append(Site(nodes[0], name, norm, _other_operand(nodes[0], norm), inputs))
    return sites


def _chosen_sites(possible: Sequence[Site], cut: Collection[str], refit: bool) -> dict[fx.Node, Site]:
    found = [replace(site, cut=site.name in cut) for site in possible]
    found = [site for site in found if site.cut or refit]
    # Of two sites that join one sum only one can wait for the other: the one that has more weights to fit with.
    found.sort(key=lambda site: (not site.cut, -site.inputs))
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


class _DenseWalk(Walk):
    """The dense network, computed as far as its features are asked for."""

    def __init__(
        self, graph: fx.Graph, dense: nn.Module, images: Sequence[Inputs], samples: int, reads: Sequence[fx.Node]
    ):
        super().__init__(graph, dense, images, reads)
        self.samples = samples

    def feature(self, site: Site) -> Feature:
        """What it computes there; once a site."""
        sampler = Sampler(self.model.get_submodule(site.name), self.samples)
        outputs = self.read(site.node)
        others = None if site.other is None else self.read(site.other)
        if others is not None and not (isinstance(others[0], Tensor) and others[0].shape == outputs[0].shape):
            others = None  # a constant, which does not drift, or something broadcast
        return Feature([sampler.rows(y) for y in outputs], others and [sampler.rows(y) for y in others])


class _PrunedWalk(Walk):
    """The pruned network; every site is solved before it is computed."""

    def __init__(
        self,
        graph: fx.Graph,
        compressed: Compressed,
        images: Sequence[Inputs],
        samples: int,
        sites: Mapping[fx.Node, Site],
        features: Callable[[Site], Feature],
    ):
        others = [site.other for site in sites.values() if site.other is not None]
        super().__init__(graph, compressed.model, images, others)
        self.samples = samples
        self.sites = sites
        self.compressed = compressed
        self.features = features
        self.drifted = False

    def needed(self, node: fx.Node) -> list[fx.Node]:
        """The inputs, and what the site's sum has on its other side."""
        site = self.sites.get(node)
        return super().needed(node) + ([] if site is None or site.other is None else [site.other])

    def compute(self, node: fx.Node) -> None:
        """Solve, then compute."""
        site = self.sites.get(node)
        if site is not None:
            feature = self.features(site)
            if site.cut or self.drifted:
                self._solve(site, feature)
                self.drifted = True
        super().compute(node)

    def _solve(self, site: Site, feature: Feature) -> None:
        module: Any = self.model.get_submodule(site.name)
        inputs = self.values[site.node.all_input_nodes[0]]
        sampler = Sampler(module, self.samples)
        targets = self._targets(site, feature, sampler)
        samples = sum(len(target) for target in targets)
        weight = sampler.weight(module.weight.detach())
        solve = self.compressed.solve
        believed = independent(samples, sum(len(x) for x in inputs))
        fitted, constant = fit(
            ((sampler.inputs(x), sampler.grouped(t)) for x, t in zip(inputs, targets, strict=True)),
            samples,
            weight,
            damping(believed, weight.shape[2], RIDGE if site.cut else REFIT_RIDGE),
            intercept=module.bias is not None or site.norm is not None,
            solve=partial(solve, site.name) if solve is not None and site.cut else None,
        )
        module.weight.data = sampler.unweight(fitted, module.weight)
        bias = 0.0 if module.bias is None else module.bias.detach().double()
        shift_output(self.model, site.name, site.norm, constant.flatten() - bias)

    def _targets(self, site: Site, feature: Feature, sampler: Sampler) -> list[Tensor]:
        """(samples, outputs) a batch: Y₁, and where the output joins a sum Y₁ − Y₁′ + Y₂ in front of the batch norm."""
        targets = [self._rows(site, y) for y in feature.output]
        if site.other is None or feature.other is None:
            return targets
        gain = self._gain(site)
        return [
            target + (self._rows(site, dense) - sampler.rows(pruned)) * gain
            for target, dense, pruned in zip(targets, feature.other, self.values[site.other], strict=True)
        ]

    def _rows(self, site: Site, feature: Tensor) -> Tensor:
        """The outputs that are left."""
        rows = self.compressed.rows.get(site.name)
        return feature if rows is None else feature.index_select(1, torch.from_numpy(rows).to(feature.device))

    def _gain(self, site: Site) -> Tensor | float:
        """(outputs,) output of the consumer per unit of the sum: 1 over the batch norm's slope, 0 where it is flat."""
        if site.norm is None:
            return 1.0
        norm: Any = self.model.get_submodule(site.norm)
        slope = (1.0 if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()
        flat = slope.abs() <= 1e-3 * slope.abs().max()
        return torch.where(flat, 0.0, 1.0 / slope)
