"""Coupling groups: which channels of which tensors go together, of a forward pass that was followed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ...networks.labels import follow
from ...networks.labels.follower import Fold, Trace
from ...networks.norms import LAYERS
from ...training.inputs import Inputs, count
from .slices import SOURCE, WEIGHTS, ChannelLayer, Role, Slice

UNTRACED = "its coupling could not be traced"

Labels = NDArray[np.int64]


def trace_groups(model: nn.Module, example: Inputs, order: Sequence[str]) -> tuple[list[ChannelLayer], dict[str, str]]:
    """Every coupling group that can be cut, and why the others cannot.

    Args:
        model: in eval mode; hooks are put on it and taken off again.
        example: images (N, C, H, W).
        order: names of its convolutions and linear layers, in the order of execution.

    Returns:
        Layers, and producer → reason for what is left whole.
    """
    groups = _Groups(model, follow(model, example), count(example), frozenset(order))
    layers: list[ChannelLayer] = []
    ignored: dict[str, str] = {}
    for producers in groups.producers(order):
        name = producers[0]
        try:
            layers.append(groups.layer(name, producers))
        except _CannotCutError as reason:
            leave_whole(ignored, name, producers, str(reason))
    return layers, ignored


def leave_whole(ignored: dict[str, str], name: str, producers: Sequence[str], reason: str) -> None:
    """Name a group that is not cut, and everything that shares its channels."""
    ignored[name] = reason
    for other in producers:
        ignored.setdefault(other, f"it is coupled to {name}, which is left whole")


class _CannotCutError(Exception):
    """Why a coupling group is left whole."""


@dataclass(frozen=True)
class _Member:
    """A dimension of a tensor, or a number that a module's forward counts by.

    Attributes:
        module: that owns it.
        tensor: its name there.
        dim: the dimension.
        role: see `Slice`.
        labels: (size,) of its positions, 0 for none.
    """

    module: str
    tensor: str
    dim: int
    role: Role
    labels: Labels


class _Groups:
    """Labels that were united, as channels (`units`) and tensors' dimensions (`members`)."""

    def __init__(self, model: nn.Module, trace: Trace, images: int, order: Collection[str]):
        self.model = model
        self.order = order
        self.images = images
        self.trace = trace
        self.channel, self.whole = _united(trace)
        self.members = [self._named(member) for member in self._members()]
        self.reasons = {channel: reason for labels, reason in reversed(trace.blocked) for channel in self._of(labels)}
        self.shared = _shared(model)
        self.sums = {channel for labels in trace.sums for channel in self._of(labels)}

    def producers(self, order: Sequence[str]) -> list[list[str]]:
        """Modules whose outputs share channels, group by group, in the order of execution."""
        place = {name: number for number, name in enumerate(order)}
        outs = [m for m in self.members if m.role == "out" and m.tensor in WEIGHTS and m.module in place]
        outs.sort(key=lambda member: place[member.module])
        first: dict[int, int] = {}
        rows, columns = [], []
        for number, member in enumerate(outs):
            for channel in set(member.labels.tolist()):
                rows.append(number)
                columns.append(first.setdefault(channel, number))
        _, group = _components(len(outs), np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))
        found: dict[int, list[str]] = {}
        for number, member in enumerate(outs):
            found.setdefault(int(group[number]), []).append(member.module)
        return [list(dict.fromkeys(names)) for names in found.values()]

    def layer(self, name: str, producers: Sequence[str]) -> ChannelLayer:
        """The group of these producers.

        Raises:
            _CannotCutError: it is left whole.
        """
        own = [m for m in self.members if m.role == "out" and m.module in producers]
        channels = list(dict.fromkeys(channel for member in own for channel in member.labels.tolist()))
        unit = {channel: number for number, channel in enumerate(channels)}
        shared = [m.module for m in self.members if m.module in self.shared and unit.keys() & set(m.labels.tolist())]
        if shared:
            raise _CannotCutError(f"its channels meet the weight of {shared[0]}, which several layers share")
        reason = next((self.reasons[channel] for channel in channels if channel in self.reasons), None)
        if reason is not None:
            raise _CannotCutError(reason)
        slices = []
        for member in self.members:
            places = np.array([unit.get(channel, -1) for channel in member.labels.tolist()])
            if (places >= 0).any():
                slices.append(_slice(member, places, len(channels)))
        if not any(part.role == "in" for part in slices):
            raise _CannotCutError("nothing that can be followed takes its channels")
        return ChannelLayer(
            name=name,
            units=len(channels),
            slices=tuple(slices),
            product_flops=self._products(set(channels)),
            trunk=any(channel in self.sums for channel in channels),
        )

    def _products(self, channels: set[int]) -> int:
        """Multiply-accumulates an image a unit, of the products of these channels and no others."""
        own = (flops for labels, flops in self.trace.products if self._of(labels) == channels)
        return sum(own) // (self.images * len(channels))

    def _of(self, labels: Tensor | Labels) -> set[int]:
        return set(self.channel[np.asarray(labels, dtype=np.int64)].tolist()) - {0}

    def _named(self, member: _Member) -> _Member:
        """What only training calls shrinks along, and is no consumer: no image is seen there."""
        only_in_training = member.role == "in" and member.tensor in WEIGHTS and member.module not in self.order
        role: Role = "through" if only_in_training else member.role
        return _Member(member.module, member.tensor, member.dim, role, self.channel[member.labels])

    def _members(self) -> Iterator[_Member]:
        for (parameter, dim), labels in self.trace.dims.items():
            module, _, tensor = parameter.rpartition(".")
            role = self.whole.get(module, cast(Role, self.trace.roles[parameter, dim]))
            if dim == 0 or module not in self.whole:  # the other one counts inside a group
                yield _Member(module, tensor, dim, role, _integers(labels))
        for name, pads in self.trace.pads.items():
            for dim, labels in enumerate(pads):
                yield _Member(name, SOURCE, dim, "through", _integers(labels))
        for parameter, labels in self.trace.elements.items():
            yield from self._along(parameter, _integers(labels))
        numbers = (member for fold in self.trace.folds for member in self._numbers(fold))
        yield from {(member.module, member.tensor): member for member in numbers}.values()

    def _along(self, parameter: str, labels: Labels) -> Iterator[_Member]:
        """The one dimension of a parameter along which its elements are different channels."""
        module, _, tensor = parameter.rpartition(".")
        channels = self.channel[labels]
        for dim, size in enumerate(labels.shape):
            along = np.moveaxis(channels, dim, 0).reshape(size, -1)
            if size > 1 and (along == along[:, :1]).all():
                yield _Member(module, tensor, dim, "through", np.moveaxis(labels, dim, 0).reshape(size, -1)[:, 0])
                return

    def _numbers(self, fold: Fold) -> Iterator[_Member]:
        """What a module's forward counts heads or parts by: its own numbers of that size."""
        table = _integers(fold.labels)
        channels = self.channel[table]
        rows = not fold.apart and len(table) > 1 and bool((channels == channels[:, :1]).all())
        columns = fold.apart and bool((channels == channels[:1]).all())
        along = table[:, 0] if rows else table[0]
        if not (rows or columns) or len(set(self.channel[along].tolist())) < len(along):
            return
        module = self.model.get_submodule(fold.module)
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool):
                if value == len(along) and ("head" in name or columns):
                    yield _Member(fold.module, name, 0, "through", along)
                elif rows and value == table.size and any(word in name for word in ("attn", "inner", "all_head")):
                    yield _Member(fold.module, name, 0, "through", table.flatten())


def _shared(model: nn.Module) -> set[str]:
    """Names of the first of several layers that have one weight: a repair of one would change the others."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            names.setdefault(id(module.weight), []).append(name)
    return {found[0] for found in names.values() if len(found) > 1}


def _slice(member: _Member, places: NDArray[np.int64], units: int) -> Slice:
    """Where the units of a layer are in a member, given the unit at each of its positions, -1 for none."""
    found: list[list[int]] = [[] for _ in range(units)]
    for position in np.flatnonzero(places >= 0):
        found[places[position]].append(int(position))
    if len({len(positions) for positions in found}) != 1:
        name = f"{member.module}.{member.tensor}".strip(".")
        raise _CannotCutError(f"its channels do not all reach {name} alike")
    return Slice(member.module, member.tensor, member.dim, member.role, np.array(found, dtype=np.int64), len(places))


def _united(trace: Trace) -> tuple[Labels, dict[str, Role]]:
    """Which labels are of one channel.

    A label that stands for many (a mean over channels) unites them where a layer takes it, or where it meets another.
    Folds come last: rows that are of one channel each already (attention's heads) stay apart, others are the forward's
    own, and what is in one column goes together.

    Returns:
        (labels + 1,) the channel that each label is of, 0 for label 0; see `_in_whole_groups`.
    """
    pairs = [*trace.pairs, *_active(trace)]
    whole = _in_whole_groups(trace, pairs)
    pairs += (pair for conv in trace.grouped for pair in conv.meetings(conv.module in whole))
    channel = _joined(trace.count, pairs)
    more = []
    for fold in trace.folds:
        table = _integers(fold.labels)
        own = channel[table]
        if fold.apart or not (own == own[:, :1]).all():
            more.append((np.broadcast_to(table[:1], table.shape).ravel(), table.ravel()))
    return _joined(trace.count, [*pairs, *more]), whole


def _in_whole_groups(trace: Trace, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Role]:
    """Convolutions of which whole groups go, and the role of their weights.

    One may let another, in front of it or behind: it unites what it takes with what it makes.
    """
    pairs, left = list(pairs), trace.grouped
    whole: dict[str, Role] = {}
    while left:
        channel = _joined(trace.count, pairs)
        found = {conv.module: conv for conv in left if conv.goes_whole(channel)}
        if not found:
            break
        whole |= {name: "through" if conv.depthwise else "out" for name, conv in found.items()}
        pairs += (pair for conv in left if conv.module in found for pair in conv.meetings(True))
        left = [conv for conv in left if conv.module not in found]
    return whole


def _active(trace: Trace) -> list[tuple[Any, Any]]:
    """The mixtures that count: used by a layer, met by another label, or part of one that counts."""
    used = np.zeros(trace.count + 1, dtype=bool)
    for labels in (*trace.used, *(side for pair in trace.pairs for side in pair)):
        used[_integers(labels)] = True
    mixtures = [(_integers(mixed), _integers(single)) for mixed, single in trace.mixtures]
    for mixed, single in reversed(mixtures):  # a mixture is of labels that were there before
        used[single[used[mixed]]] = True
    return [(mixed[used[mixed]], single[used[mixed]]) for mixed, single in mixtures]


def _joined(count: int, pairs: Sequence[tuple[Any, Any]]) -> Labels:
    left = np.concatenate([np.zeros(0, dtype=np.int64), *(_integers(some).ravel() for some, _ in pairs)])
    right = np.concatenate([np.zeros(0, dtype=np.int64), *(_integers(others).ravel() for _, others in pairs)])
    met = (left > 0) & (right > 0)
    _, channel = _components(count + 1, left[met], right[met])
    return np.where(channel == channel[0], 0, channel + 1)


def _components(count: int, left: Labels, right: Labels) -> tuple[int, Labels]:
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    number, component = connected_components(graph, directed=False)
    return number, component.astype(np.int64)


def _integers(labels: Any) -> Labels:
    return np.asarray(labels.numpy() if isinstance(labels, torch.Tensor) else labels).astype(np.int64)
