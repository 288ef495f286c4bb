"""A network whose weights are of few bits: what keeps them so, and what is trained in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .grid import Grid, Scales, best_scale
from .shared import Shared, Values, distinct, kmeans

SCALE = "_scale"  # behind the tensor's name

Grids = dict[str, int]  # parameter name → bits, where they are fewer than all


class Levels(Protocol):
    """The numbers that the weights of a tensor may be: codes of few bits, and what they stand for."""

    def codes(self, weight: Tensor) -> Tensor:
        """Of the nearest numbers; whole, of the weight's shape."""
        ...

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        ...

    def of(self, weight: Tensor) -> Levels:
        """The same for a tensor (q, …) in place of its rows (groups, q, p), numbers of its type."""
        ...


class GridKind(Protocol):
    """A kind of `Levels`: how they are found, where they are kept, and how they are trained."""

    def fitted(self, weight: Tensor, bits: int, importance: Tensor, dtype: torch.dtype) -> Levels:
        """Those whose nearest lose least, Σ importance · (v − w)²; zeros are pruned, and stay so whatever the levels.

        Args:
            weight: (groups, q, p), double.
            bits: of a code.
            importance: of every weight, broadcast to them; positive.
            dtype: that the levels are numbers of; they come as double.
        """
        ...

    def found(self, model: nn.Module, name: str, bits: int, pruned: Tensor | None) -> Levels:
        """A network's own; where its weights are on none yet, such as suit them."""
        ...

    def keep(self, model: nn.Module, name: str, levels: Levels) -> None:
        """Put beside a network's weight what cannot be told of the weight itself."""
        ...

    def place(self, model: nn.Module, name: str) -> None:
        """A place for that, to be loaded."""
        ...

    def trained(self, model: nn.Module, name: str, bits: int, pruned: Tensor | None) -> nn.Module:
        """What trains a weight that is on its levels: a parametrisation of it."""
        ...

    def finish(self, model: nn.Module, name: str, trained: Any) -> None:
        """Keep what was trained besides."""
        ...


class RowGrid:
    """Whole numbers times a scale an output, which is kept beside the weight."""

    def fitted(self, weight: Tensor, bits: int, importance: Tensor, dtype: torch.dtype) -> Scales:
        """See `GridKind`; the scale is (groups, q, 1)."""
        return Scales(_positive(best_scale(weight, bits, importance), dtype).double(), bits)

    def found(self, model: nn.Module, name: str, bits: int, _pruned: Tensor | None) -> Scales:
        """A scale that is none yet (0) is chosen."""
        module, own, key = place_of(model, name)
        weight, scale = module.get_parameter(own).detach(), module.get_buffer(key)
        if not bool((scale > 0.0).all()):
            found = best_scale(weight.flatten(1).double(), bits, torch.ones((), dtype=torch.float64))
            scale.copy_(_positive(found, scale.dtype).flatten())
        return Scales(scale, bits).of(weight)

    def keep(self, model: nn.Module, name: str, levels: Any) -> None:
        """Its scales (q,)."""
        _set_scale(model, name, levels.scale.flatten())

    def place(self, model: nn.Module, name: str) -> None:
        """For its scales."""
        _set_scale(model, name, torch.zeros_like(model.get_parameter(name).detach().flatten(1)[:, 0]))

    def trained(self, model: nn.Module, name: str, bits: int, pruned: Tensor | None) -> Grid:
        """A weight of full precision and the scales."""
        module, own, key = place_of(model, name)
        return Grid(module.get_buffer(key), bits, pruned, trained=module.get_parameter(own).requires_grad)

    def finish(self, model: nn.Module, name: str, trained: Any) -> None:
        """The scales."""
        module, _, key = place_of(model, name)
        module.get_buffer(key).copy_(trained.positive.detach())


class SharedValues:
    """2^bits values that a tensor's weights share, found by k-means; where some are pruned, zero is one of them."""

    def fitted(self, weight: Tensor, bits: int, importance: Tensor, dtype: torch.dtype) -> Values:
        """See `GridKind`."""
        kept = weight != 0.0
        table = kmeans(weight[kept], importance.expand_as(weight)[kept], 2**bits - (not bool(kept.all())))
        return Values(_some(distinct(table.to(dtype)).double()), dtype)

    def found(self, model: nn.Module, name: str, bits: int, pruned: Tensor | None) -> Values:
        """What its weights are, where those are few enough."""
        weight = model.get_parameter(name).detach()
        kept = weight.flatten() if pruned is None else weight[~pruned]
        most = 2**bits - (pruned is not None)
        table = distinct(kept)
        if len(table) > most:
            found = kmeans(kept.double(), torch.ones_like(kept, dtype=torch.float64), most)
            table = distinct(found.to(weight.dtype))
        return Values(_some(table), weight.dtype)

    def keep(self, model: nn.Module, name: str, levels: Any) -> None:
        """Nothing: they are those that the weight has."""

    def place(self, model: nn.Module, name: str) -> None:
        """For nothing."""

    def trained(self, model: nn.Module, name: str, bits: int, pruned: Tensor | None) -> Shared:
        """The values, assignments fixed."""
        weight = model.get_parameter(name)
        return Shared(self.found(model, name, bits, pruned), weight.detach(), pruned, trained=weight.requires_grad)

    def finish(self, model: nn.Module, name: str, trained: Any) -> None:
        """Nothing is kept besides."""


GRIDS: Mapping[str, GridKind] = {"row": RowGrid(), "shared": SharedValues()}


@dataclass(frozen=True)
class OnGrid:
    """Keeps weights on their levels: between trainings it rounds, and in one the network computes with what is rounded.

    Attributes:
        grids: parameter name → bits.
        kind: of levels.
        pruned: parameter name → which of its weights (bool, of its shape) are zero and stay so, where some are.
    """

    grids: Grids
    kind: GridKind
    pruned: Mapping[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Round to the nearest level, in place."""
        for name, bits in self.grids.items():
            module, own, _ = place_of(model, name)
            if parametrize.is_parametrized(module, own):
                continue
            weight, levels = module.get_parameter(own), self.kind.found(model, name, bits, self.pruned.get(name))
            weight.copy_(levels.values(levels.codes(weight)))
            if name in self.pruned:
                weight.masked_fill_(self.pruned[name], 0.0)

    @contextmanager
    def trained(self, model: nn.Module) -> Iterator[None]:
        """While it lasts other parameters are trained in the place of the weights; see `Grid` and `Shared`."""
        self(model)
        made: list[tuple[nn.Module, str]] = []
        trained: dict[str, nn.Module] = {}
        order: dict[nn.Module, list[str]] = {module: list(module._parameters) for module in model.modules()}
        for name, bits in self.grids.items():
            owner, own, _ = place_of(model, name)
            weight = owner.get_parameter(own)
            trained[name] = self.kind.trained(model, name, bits, self.pruned.get(name))
            for module in [module for module in model.modules() if getattr(module, own, None) is weight]:
                parametrize.register_parametrization(module, own, trained[name])
                made.append((module, own))
        try:
            yield
        finally:
            for module, own in made:
                parametrize.remove_parametrizations(module, own)
                for name in order[module]:  # optimizers and checkpoints count parameters in their order
                    module._parameters[name] = module._parameters.pop(name)
            for name, grid in trained.items():
                self.kind.finish(model, name, grid)


def place_of(model: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """The module that a parameter is of, its name there, and that of its scales."""
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own, f"{own}{SCALE}"


def _set_scale(model: nn.Module, name: str, scale: Tensor) -> None:
    module, _, key = place_of(model, name)
    module.register_buffer(key, scale)


def _positive(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return scale.to(dtype).clamp_min(torch.finfo(dtype).tiny)


def _some(table: Tensor) -> Tensor:
    """The values; 0 where a tensor is pruned altogether."""
    return table if len(table) else table.new_zeros(1)
