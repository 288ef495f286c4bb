"""Inputs of layers on a grid a tensor: ranges seen on calibration images, clipped where that loses least."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ...training.inputs import call
from ..inference import Batches
from .affine import Affine
from .quantisers import Layer, Quantiser, with_quantiser

SEEN = 8192  # values a batch that a clip is chosen by
RATIOS = torch.linspace(1.0, 0.1, 31)  # of the range that nothing is clipped by


class InputGrid(Quantiser):
    """Inputs S (q − Z) of a fixed range; weights are those of the layer.

    Attributes:
        range: (2,) least and greatest value.
        bits: of q.
    """

    range: Tensor

    def __init__(self, layer: Layer, *, bits: int):
        super().__init__(layer)
        self.bits = bits
        self.register_buffer("range", layer.weight.new_zeros(2))

    def inputs(self, x: Tensor) -> Tensor:
        """On the grid."""
        grid = Affine.of(self.range[0], self.range[1], self.bits)
        return grid.real(grid.codes(x))


def set_input_grid(model: nn.Module, name: str, bits: int, limits: Tensor | None = None) -> None:
    """Put a module's inputs on a grid, in place; the range (2,) may come later.

    Raises:
        ValueError: the module is of a kind that knows no such grid.
    """
    module = model.get_submodule(name)
    quantiser = getattr(module, "quantiser", None)
    if not isinstance(quantiser, InputGrid) or quantiser.bits != bits:
        quantiser = InputGrid(module, bits=bits)  # type: ignore[arg-type]
        module = with_quantiser(module, quantiser)
        model.set_submodule(name, module)
    if limits is not None:
        quantiser.range.copy_(limits)


@torch.no_grad()
def input_ranges(model: nn.Module, names: Collection[str], batches: Batches, bits: int) -> dict[str, Tensor]:
    """Module → (2,) the range of its inputs whose grid loses least of them; one pass of the images.

    Args:
        model: in eval mode.
        names: of the modules.
        batches: calibration images, (N, C, H, W) and labels.
        bits: of the grid.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def look(name: str, x: Tensor) -> None:
        flat = x.detach().flatten()
        ends = torch.stack([flat.min(), flat.max()])
        seen[name].append(torch.cat([ends, flat[:: max(1, len(flat) // SEEN)]]))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: look(name, args[0]))
        for name in names
    ]
    try:
        for images, _ in batches:
            call(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _best_range(torch.cat(parts), bits) for name, parts in seen.items() if parts}


def _best_range(values: Tensor, bits: int) -> Tensor:
    ends = torch.stack([values.min(), values.max()])

    def error(limits: Tensor) -> float:
        grid = Affine.of(limits[0], limits[1], bits)
        return float((grid.real(grid.codes(values)) - values).square().sum())

    found: Tensor = min((ends * ratio for ratio in RATIOS.tolist()), key=error)
    return found
