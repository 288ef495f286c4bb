"""A network whose weights lie on grids: what keeps them there, and what is trained in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .grid import Grid, best_scale, by_row, to_codes

SCALE = "_scale"  # behind the tensor's name

Grids = dict[str, int]  # parameter name → bits, where they are fewer than all


@dataclass(frozen=True)
class OnGrid:
    """Keeps weights on their grid: between trainings it rounds, and in one the network computes with what is rounded.

    Attributes:
        grids: parameter name → bits.
        pruned: parameter name → which of its weights (bool, of its shape) are zero and stay so, where some are.
    """

    grids: Grids
    pruned: Mapping[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Round to the nearest code, in place; a scale that is none yet (0) is chosen first."""
        for name, bits in self.grids.items():
            module, own, key = place_of(model, name)
            if parametrize.is_parametrized(module, own):
                continue
            weight, scale = module.get_parameter(own), module.get_buffer(key)
            if not bool((scale > 0.0).all()):
                found = best_scale(weight.flatten(1).double(), bits, torch.ones((), dtype=torch.float64))
                scale.copy_(found.flatten().to(scale.dtype).clamp_min(torch.finfo(scale.dtype).tiny))
            rows = by_row(scale, weight)
            weight.copy_(to_codes(weight, rows, bits) * rows)
            if name in self.pruned:
                weight.masked_fill_(self.pruned[name], 0.0)

    @contextmanager
    def trained(self, model: nn.Module) -> Iterator[None]:
        """While it lasts what is trained is weights of full precision and the scales; see `Grid`."""
        self(model)
        made: list[tuple[nn.Module, str, str, Grid]] = []
        order: dict[nn.Module, list[str]] = {module: list(module._parameters) for module in model.modules()}
        for name, bits in self.grids.items():
            owner, own, key = place_of(model, name)
            weight = owner.get_parameter(own)
            grid = Grid(owner.get_buffer(key), bits, self.pruned.get(name), trained=weight.requires_grad)
            for module in [module for module in model.modules() if getattr(module, own, None) is weight]:
                parametrize.register_parametrization(module, own, grid)
                made.append((module, own, key, grid))
        try:
            yield
        finally:
            for module, own, key, grid in made:
                parametrize.remove_parametrizations(module, own)
                for name in order[module]:  # optimizers and checkpoints count parameters in their order
                    module._parameters[name] = module._parameters.pop(name)
                if hasattr(module, key):
                    module.get_buffer(key).copy_(grid.positive.detach())


def place_of(model: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """The module that a parameter is of, its name there, and that of its scales."""
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own, f"{own}{SCALE}"


def set_scale(model: nn.Module, name: str, scale: Tensor) -> None:
    """Keep the scales (q,) of a parameter beside it."""
    module, _, key = place_of(model, name)
    module.register_buffer(key, scale)
