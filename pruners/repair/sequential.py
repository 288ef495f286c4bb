"""Sequential least squares: layer after layer, on the features the pruned network really computes.

He, Zhang, Sun (ICCV 2017): inputs from the network pruned so far, targets from the dense one; where a consumer's
output joins a residual sum, its target is Y₁ − Y₁′ + Y₂, so that the *sum* matches and not only the branch.

The pruned network walks its torch.fx graph from one fitted layer to the next, batch by batch; a consumer is solved on
what reaches it, and what follows is computed with its new weights. A residual sum's other operand is computed first,
whatever the order of the code. Of the dense network only samples of the outputs are needed: they are kept where they
are not too large, and otherwise it walks along. What both go on from is kept, in a file where it does not fit into
memory (`networks/stream.py`), so that every image takes one pass, and memory does not grow without end.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial, reduce
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ...networks.constant import Constant
from ...networks.factors import set_weight, whole_layer
from ...networks.graph import UntraceableError as UntraceableError
from ...networks.graph import trace
from ...networks.inference import Batches, count_images
from ...networks.norms import following_norms, shift_output
from ...networks.stream import FRONT, Stream, computing_order
from ...training.inputs import taken
from ..method import Compressed
from .sites import Site, chosen_sites, needed, possible_sites
from .solve import RIDGE, damping, fit
from .statistics import SAMPLES, Sampler, repairable

REFIT_RIDGE = 1e-2
HELD = 2**30  # bytes of the dense network's features that are kept for the next candidate


class Feature(NamedTuple):
    """What the dense network computes at a site: (samples, channels) of a batch, at the sampler's positions."""

    output: Tensor
    other: Tensor | None

    @classmethod
    def of(cls, output: Tensor, *others: Tensor) -> Feature:
        """With the other operands of a sum, added up."""
        return cls(output, reduce(operator.add, others) if others else None)


class SequentialRepair:
    """The repair of networks cut from one dense network, on the same images; what they share is computed once.

    Attributes:
        dense: the network they are cut from, in eval mode.
        images: that repair, in batches.
    """

    def __init__(
        self, dense: nn.Module, batches: Batches, *, samples: int = SAMPLES, held: int = HELD, front: int = FRONT
    ):
        """Trace the network.

        Args:
            dense: the network, in eval mode.
            batches: calibration images, (N, C, H, W) and labels.
            samples: output positions an image that a fit looks at, at most.
            held: keep the dense network's features if they take no more than this many bytes.
            front: bytes that each network's values may take from which the next layer is reached.

        Raises:
            UntraceableError: torch.fx cannot trace the network, or what it traces computes something else.
        """
        self.dense = dense
        self.images = batches
        self._samples = samples
        self._held = held
        self._front = front
        self._example: Batches = [taken(batches[0], slice(1))]
        image, _ = self._example[0]
        self._graph = trace(dense, image)
        sites = possible_sites(self._graph, dense, following_norms(dense, image))
        self._sites = self._joining(sites, [taken(batches[0], slice(2))])

    @torch.no_grad()
    def __call__(self, compressed: Compressed, *, refit: bool = False) -> None:
        """Re-fit every module that was cut, in the order the images reach them.

        Args:
            compressed: its model is changed in place.
            refit: also re-fit what sits before a cut: producers whose inputs drifted, with a ridge towards their old
                weights.
        """
        seen = {str(node.target) for node in self._graph.nodes}
        hidden = {name for name in compressed.cut - seen if repairable(self.dense.get_submodule(name))}
        if hidden:
            raise UntraceableError(f"torch.fx cannot follow what goes into {', '.join(sorted(hidden)[:3])}")
        chosen = chosen_sites(self._sites, compressed, refit)
        order = computing_order(self._graph, partial(needed, chosen))
        sites = [chosen[node] for node in order if node in chosen]
        first = next((i for i, site in enumerate(sites) if site.cut), len(sites))
        sites = sites[first:]  # in front of the first cut nothing has drifted
        if not sites:
            return
        reads = [node for site in sites for node in site.reads]
        pruned = Stream(order, compressed.model, self.images, reads, self._front)
        fitting = _Fitting(compressed, self.dense, pruned, self._samples, count_images(self.images))
        features = self._source(sites)
        for site in sites:
            fitting.solve(site, features(site))

    @cached_property
    @torch.no_grad()
    def bytes(self) -> int:
        """What the dense network's features take."""
        alone = self._read(self._example)
        tensors = [t for batches in alone.values() for values in batches for t in values]
        return sum(t.numel() * t.element_size() for t in tensors) * count_images(self.images)

    @cached_property
    def _features(self) -> Mapping[str, Sequence[Sequence[Tensor]]]:
        return self._read(self.images)

    def _read(self, batches: Batches) -> dict[str, list[list[Tensor]]]:
        """What all sites ask for, a batch at a time, in one pass."""
        looks = [look for site in self._sites for look in self._looks(site)]
        found: dict[str, list[list[Tensor]]] = {site.name: [] for site in self._sites}
        for values in self._stream(batches, self._sites).read(*looks):
            seen = iter(values)
            for site in self._sites:
                found[site.name].append([next(seen) for _ in site.nodes])
        return found

    def _source(self, sites: Collection[Site]) -> Callable[[Site], Iterator[Feature]]:
        if self.bytes > self._held:
            stream = self._stream(self.images, sites)

            def walk(site: Site) -> Iterator[Feature]:
                return (Feature.of(*values) for values in stream.read(*self._looks(site)))

            return walk
        nodes = {site.name: site.nodes for site in self._sites}

        def kept(site: Site) -> Iterator[Feature]:
            places = [nodes[site.name].index(node) for node in site.nodes]  # it may wait for fewer than there are
            return (Feature.of(*(values[place] for place in places)) for values in self._features[site.name])

        return kept

    def _stream(self, batches: Batches, sites: Collection[Site]) -> Stream:
        reads = [node for site in sites for node in site.nodes]
        return Stream(self._graph.nodes, self.dense, batches, reads, self._front)

    def _looks(self, site: Site) -> list[tuple[fx.Node, Callable[[Any], Any]]]:
        rows = Sampler(self.dense.get_submodule(site.name), self._samples).rows
        return [(node, rows) for node in site.nodes]

    @torch.no_grad()
    def _joining(self, sites: Sequence[Site], example: Batches) -> list[Site]:
        """The sites, without other operands that are constants, which do not drift, or broadcast."""
        shapes = [(node, lambda value: getattr(value, "shape", None)) for site in sites for node in site.nodes]
        values = next(self._stream(example, sites).read(*shapes)) if sites else []
        found = dict(zip((node for node, _ in shapes), values, strict=True))
        return [
            replace(site, others=tuple(other for other in site.others if found[other] == found[site.node]))
            for site in sites
        ]


def independent(samples: int, images: int) -> float:
    """How many independent samples so many positions of so many images are worth: half-way in the logarithm.

    Positions of an image see much the same. Counted in full, fits of MobileNetV3 (1,024 samples of 256 images, 576
    inputs) follow the calibration images, every next one follows what the last one made of them, and other images'
    logits end further off than without a repair. With one an image, ResNet-20 (128 positions) loses a point.
    A Gram repair counts in full: its inputs are the dense network's, no fit builds on another, and it loses by less.
    """
    return math.sqrt(samples * images)


class _Fitting:
    """Fits the pruned network's sites, each before anything behind it is computed."""

    def __init__(self, compressed: Compressed, dense: nn.Module, stream: Stream, samples: int, images: int):
        self.compressed = compressed
        self.dense = dense
        self.model = compressed.model
        self.stream = stream
        self.samples = samples
        self.images = images

    def solve(self, site: Site, features: Iterator[Feature]) -> None:
        """Fit one site to what the dense network computes there."""
        fitting = self.model.get_submodule(site.name)
        if isinstance(fitting, Constant):
            self._shift(fitting, site, features)
            return
        module: Any = whole_layer(fitting)
        sampler = Sampler(module, self.samples)
        looks = [lambda x: (len(x), sampler.inputs(x)), *[sampler.rows] * len(site.others)]
        pruned = self.stream.read(*zip(site.reads, looks, strict=True))
        batches = (
            (count, x, self._target(site, feature, *others))
            for ((count, x), *others), feature in zip(pruned, features, strict=True)
        )
        count, x, target = next(batches)
        per_image = self.images / self.stream.first
        samples, inputs = round(len(target) * per_image), round(count * per_image)
        weight = sampler.weight(module.weight.detach())
        solve = self.compressed.solve
        fitted, constant = fit(
            ((x, sampler.grouped(target)) for _, x, target in chain([(count, x, target)], batches)),
            samples,
            weight,
            damping(independent(samples, inputs), weight.shape[2], RIDGE if site.cut else REFIT_RIDGE),
            intercept=module.bias is not None or site.norm is not None,
            solve=partial(solve, site.name) if solve is not None and site.cut else None,
        )
        set_weight(fitting, sampler.unweight(fitted, module.weight))
        shift_output(self.model, site.name, site.norm, constant.flatten() - self._constant(site, module.bias))

    def _shift(self, constant: Constant, site: Site, features: Iterator[Feature]) -> None:
        """What is added in the place of a branch also makes up for the other operand's drift, on the mean."""
        sampler = Sampler(self.dense.get_submodule(site.name), self.samples)
        rows = self.compressed.rows.get(site.norm or site.name)
        assert constant.mean is not None
        drifts = []
        looks = [(node, sampler.rows) for node in site.reads]
        for others, feature in zip(self.stream.read(*looks), features, strict=True):
            other = reduce(operator.add, others)
            assert feature.other is not None
            before = feature.other if rows is None else feature.other[:, torch.from_numpy(rows).to(other.device)]
            drifts.append((len(other), (before - other).double().sum(0)))
        mean = torch.stack([drift for _, drift in drifts]).sum(0) / sum(count for count, _ in drifts)
        constant.mean.data += mean.to(constant.mean.dtype)

    def _target(self, site: Site, feature: Feature, *others: Tensor) -> Tensor:
        """(samples, outputs): Y₁, and where the output joins a sum Y₁ − Y₁′ + Y₂ in front of the batch norm."""
        target = self._rows(site, feature.output)
        if feature.other is None or not others:
            return target
        return target + (self._rows(site, feature.other) - reduce(operator.add, others)) * self._gain(site)

    def _rows(self, site: Site, feature: Tensor) -> Tensor:
        """The outputs that are left."""
        rows = self.compressed.rows.get(site.name)
        return feature if rows is None else feature.index_select(1, torch.from_numpy(rows).to(feature.device))

    def _constant(self, site: Site, bias: Tensor | None) -> Tensor | float:
        """(outputs,) what is there of the constant: the bias, or by how much the norm's mean is not the dense one."""
        if bias is not None or site.norm is None:
            return 0.0 if bias is None else bias.detach().double()
        means = [network.get_submodule(site.norm).running_mean for network in (self.dense, self.model)]
        assert isinstance(means[0], Tensor)
        assert isinstance(means[1], Tensor)
        rows = self.compressed.rows.get(site.name)
        dense = means[0] if rows is None else means[0][torch.from_numpy(rows).to(means[0].device)]
        return (dense - means[1]).double()

    def _gain(self, site: Site) -> Tensor | float:
        """(outputs,) output of the consumer per unit of the sum: 1 over the batch norm's slope, 0 where it is flat."""
        if site.norm is None:
            return 1.0
        norm: Any = self.model.get_submodule(site.norm)
        slope = (1.0 if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()
        flat = slope.abs() <= 1e-3 * slope.abs().max()
        return torch.where(flat, 0.0, 1.0 / slope)
