"""Criteria that remove a unit and look what becomes of the network (Abbasi-Asl & Yu, 2017, "CAR").

Greedy: the unit whose removal, on top of those already gone, hurts least goes next; then all are measured anew. Nothing
is repaired in between. Measuring costs a forward pass of `IMAGES` images for every unit that is left, so a layer of
width w costs up to w²/2 passes if all are evaluated anew after every removal. Wider layers than `ROUNDS` therefore lose
the ⌈w / ROUNDS⌉ least important ones a round.

Only what comes behind the layer's consumers is computed again, where torch.fx can follow the network, with batch norms
folded; and units race. Neither mistakes nor loss ever fall while more images are looked at, so the unit that leads
looks at the next `PART` of them, and the first to be through with all has won: the same as if all had looked at all.
The images that the dense network finds hardest come first, and most units never get beyond them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ....networks.channel_pad import ChannelPad
from ....networks.graph import UntraceableError, arguments, call_node, trace
from ....networks.inference import Batches, first_images
from ....networks.norms import channel_dim, fold_batchnorm, following_norms
from ....training.inputs import Inputs, call, count, joined, mapped, picked, taken
from ....training.objective import Objective
from ....training.tasks import DEFAULT
from ...context import Context
from ..slices import ChannelLayer
from .activations import consumer_channels
from .registry import Order, register_criterion

IMAGES = 100  # calibration images that a removal is evaluated on
ROUNDS = 16  # how often the units of a layer are evaluated anew
PART = 10  # images that are looked at at a time

Harm = Callable[[float, float], tuple[float, ...]]

HARMS: dict[str, Harm] = {"car": lambda accuracy, loss: (-accuracy, loss), "rar": lambda _accuracy, loss: (loss,)}


@register_criterion("car")
def car(context: Context, layer: ChannelLayer) -> Order:
    """By the drop of the objective's score (of a classifier, accuracy) when a unit is removed; ties by the loss."""
    return greedy(context, layer, HARMS["car"], images=IMAGES, rounds=ROUNDS)


@register_criterion("rar")
def rar(context: Context, layer: ChannelLayer) -> Order:
    """By the rise of the objective's loss (the paper's index for regression) when a unit is removed."""
    return greedy(context, layer, HARMS["rar"], images=IMAGES, rounds=ROUNDS)


def greedy(context: Context, layer: ChannelLayer, harm: Harm, *, images: int, rounds: int | None) -> Order:
    """Units from the last to the first removed.

    Args:
        context: the network, and images to evaluate on.
        layer: whose units are removed; the others stay whole.
        harm: of a network without a unit, from its (mean score, loss): the least goes first; ties by number. It must
            not fall where the score falls, nor where the loss rises.
        images: how many calibration images to evaluate on.
        rounds: how often the units are evaluated anew, at most; none for after every removal.
    """
    return remove_greedily(UnitEvaluator.of(context, layer, images), layer.units, harm, rounds)


def remove_greedily(
    evaluator: UnitEvaluator,
    width: int,
    harm: Harm,
    rounds: int | None,
    removed: Callable[[int], None] = lambda _count: None,
) -> Order:
    """Units from the last to the first removed; see `greedy`. `removed` is told after every round how many are gone."""
    at_once = 1 if rounds is None else -(-width // rounds)
    alive, gone = list(range(width)), list[int]()
    parts = list(range(len(evaluator.parts)))
    while len(alive) > 1:
        first, parts = _race(evaluator, gone, alive, harm, min(at_once, len(alive) - 1), parts)
        gone += first
        alive = [unit for unit in alive if unit not in first]
        removed(len(gone))
    return np.array([*alive, *gone[::-1]], dtype=np.int64)


def _race(
    evaluator: UnitEvaluator, gone: list[int], alive: list[int], harm: Harm, count: int, parts: list[int]
) -> tuple[list[int], list[int]]:
    """The `count` units that hurt least, and the order of the parts for the next race: by the last one's loss."""
    seen: dict[int, list[tuple[float, float]]] = {unit: [] for unit in alive}
    queue: list[tuple[tuple[float, ...], int]] = [((), unit) for unit in alive]
    first: list[int] = []
    while len(first) < count:
        _, unit = heapq.heappop(queue)
        looks = seen[unit]
        if len(looks) == len(parts):
            first.append(unit)
            continue
        looks.append(evaluator.look([*gone, unit], parts[len(looks)]))
        wrong, loss = (sum(column) / evaluator.images for column in zip(*looks, strict=True))
        heapq.heappush(queue, (harm(1.0 - wrong, loss), unit))
    losses = dict(zip(parts, seen[first[-1]], strict=True))
    return first, sorted(parts, key=lambda part: -losses[part][1])


@dataclass(frozen=True)
class UnitEvaluator:
    """Mistakes (1 − score) and loss of the dense network with units of one layer zeroed where they are looked at.

    Attributes:
        model: the dense network.
        channels: module → (units, k) channels of its input that are the units'.
        objective: what it is for.
        targets: of the images.
        parts: for `PART` of the images each, the hardest first, what computes their outputs.
        behind: whether the channels are those of its output instead.
    """

    model: nn.Module
    channels: dict[str, NDArray[np.int64]]
    objective: Objective
    targets: Any
    parts: Sequence[Callable[[], Any]]
    behind: bool = False

    @property
    def images(self) -> int:
        """How many there are."""
        return count(self.targets)

    @classmethod
    def of(cls, context: Context, layer: ChannelLayer, most: int) -> UnitEvaluator:
        """For a layer, on the first `most` calibration images."""
        key, objective = f"removal-{most}", context.objective
        if key not in context.memo:
            images, targets = joined(first_images(context.calibration, most))
            folded = fold_batchnorm(context.model, taken(images, slice(PART)))
            context.memo[key] = folded, *_hardest_first(folded, objective, images, targets)
        model, images, targets = context.memo[key]
        channels = consumer_channels(context, layer)
        for part in layer.slices:  # a shortcut would carry a removed unit on to the next trunk
            if part.dim == 1 and isinstance(context.model.get_submodule(part.module), ChannelPad):
                channels[part.module] = part.positions
        return cls(model, channels, objective, targets, _forwards(model, _parts(images, PART), set(channels)))

    @classmethod
    def of_filters(cls, model: nn.Module, name: str, batches: Batches, objective: Objective = DEFAULT) -> UnitEvaluator:
        """For the filters of one convolution alone, whoever else adds to their channels; on all the images.

        A filter is removed by zeroing its output: behind the batch norm that takes it, or the shift would live on.
        """
        example = taken(batches[0][0], slice(PART))
        last = following_norms(model, example).get(name, name)
        units = np.arange(model.get_parameter(f"{name}.weight").shape[0])[:, None]
        folded = fold_batchnorm(model, example, keep={last})
        images, targets = _hardest_first(folded, objective, *joined(batches))
        return cls(
            folded, {last: units}, objective, targets, _forwards(folded, _parts(images, PART), {last}), behind=True
        )

    def __call__(self, gone: Sequence[int]) -> tuple[float, float]:
        """Mean score (of a classifier the fraction of correct answers) and mean loss, without these units."""
        looks = [self.look(gone, part) for part in range(len(self.parts))]
        wrong, loss = (sum(column) / self.images for column in zip(*looks, strict=True))
        return 1.0 - wrong, loss

    def look(self, gone: Sequence[int], part: int) -> tuple[float, float]:
        """Σ 1 − score (wrong answers) and Σ loss without these units, on a part of the images; both 0 at least."""
        targets = taken(self.targets, slice(part * PART, (part + 1) * PART))
        with torch.no_grad(), self._zeroed(gone):
            outputs = mapped(_double, self.parts[part]())
            targets = mapped(_double, targets)
            missed = (1.0 - self.objective.score(outputs, targets)).nansum()
            return float(missed), float(self.objective.losses(outputs, targets).sum())

    @contextmanager
    def _zeroed(self, gone: Sequence[int]) -> Iterator[None]:
        hooks = []
        for name, channels in self.channels.items():
            module = self.model.get_submodule(name)
            dim = channel_dim(module)
            indices = torch.from_numpy(channels[np.asarray(gone, dtype=np.int64)].ravel())
            if self.behind:
                hooks.append(module.register_forward_hook(lambda _m, _a, out, d=dim, p=indices: _without(out, d, p)))
            else:
                hooks.append(module.register_forward_pre_hook(partial(_take_without, dim, indices)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _take_without(dim: int, indices: Tensor, _module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    zeroed = _without(given[0], dim, indices)
    return tuple(zeroed if value is given[0] else value for value in given)  # attention may be given it three times


def _without(x: Tensor, dim: int, indices: Tensor) -> Tensor:
    return x.index_fill(dim, indices.to(x.device), 0.0)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _hardest_first(model: nn.Module, objective: Objective, images: Inputs, targets: Any) -> tuple[Inputs, Any]:
    """Images and targets, sorted by the network's loss."""
    with torch.no_grad():
        parts = _parts((images, targets), 100)
        losses = torch.cat([objective.losses(call(model, some), told) for some, told in parts])
    order = losses.argsort(descending=True, stable=True).tolist()
    return picked(images, order), picked(targets, order)


def _parts(images: Inputs, size: int) -> list[Inputs]:
    return [taken(images, slice(start, start + size)) for start in range(0, count(images), size)]


def _forwards(model: nn.Module, parts: Sequence[Inputs], late: set[str]) -> list[Callable[[], Any]]:
    """Forward passes of `PART` images each that compute again only what may change when inputs of `late` modules do."""
    try:
        graph = trace(model, taken(parts[0], slice(1)))
    except UntraceableError:
        return [partial(call, model, some) for some in parts]
    with torch.no_grad():
        return [_Rest(model, graph, some, late) for some in parts]


class _Rest:
    """Walks a graph once, and afterwards only what comes behind some modules."""

    def __init__(self, model: nn.Module, graph: fx.Graph, images: Inputs, late: set[str]) -> None:
        self.model = model
        behind: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if str(node.target) in late or any(before in behind for before in node.all_input_nodes):
                behind[node] = None
        self.output = next(node for node in graph.nodes if node.op == "output")
        self.behind = [node for node in behind if node is not self.output]
        early = [node for node in graph.nodes if node not in behind and node is not self.output]
        given = arguments(graph, images)
        self.early = self._walk([node for node in early if node not in given], given, {*self.behind, self.output})

    def __call__(self) -> Any:
        """What the network returns."""
        values = self._walk(self.behind, self.early, {self.output})
        return fx.map_arg(self.output.args[0], values.__getitem__)

    def _walk(self, nodes: list[fx.Node], given: dict[fx.Node, Any], users: set[fx.Node]) -> dict[fx.Node, Any]:
        """Compute nodes; what is returned is only what `users` look at."""
        values = dict(given)
        last = {before: node for node in nodes for before in node.all_input_nodes}
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = call_node(self.model, node, args, kwargs)
            for before in {*node.all_input_nodes, node}:
                if last.get(before, node) is node and users.isdisjoint(before.users):
                    del values[before]
        return {node: value for node, value in values.items() if not users.isdisjoint(node.users)}
