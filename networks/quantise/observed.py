"""Inputs of layers on a grid a tensor: ranges seen on calibration images, clipped where that loses least."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ...training.inputs import call
from ..inference import Batches
from .affine import Affine
from .quantisers import Layer, Quantiser, with_quantiser

SEEN = 8192  # values a batch that a clip is chosen by
KEPT = 8 * SEEN  # of all batches
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


class SeenInputs:
    """What goes into some modules of a network, on calibration images: which range a grid has best, and what it loses.

    Attributes:
        model: in eval mode.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, names: Collection[str], batches: Batches):
        """One pass of the images.

        Args:
            model: in eval mode.
            names: of convolutions and linear layers; those that are not called are not seen.
            batches: (N, C, H, W) and labels, or what else the network takes.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in names}

        def look(name: str, x: Tensor) -> None:
            flat = x.detach().flatten()
            ends = torch.stack([flat.min(), flat.max()])
            seen[name].append(torch.cat([ends, flat[:: max(1, len(flat) // SEEN)]]))

        _watch(model, batches, {name: lambda _m, x, _y, name=name: look(name, x) for name in names})
        self.model = model
        self._values = {name: _some(torch.cat(parts)) for name, parts in seen.items() if parts}
        self._ranges: dict[tuple[str, int], Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def range(self, name: str, bits: int) -> Tensor:
        """(2,) the range of a module's inputs whose grid loses least of them; found once."""
        if (name, bits) not in self._ranges:
            self._ranges[name, bits] = best_range(self._values[name], bits)
        return self._ranges[name, bits]

    def _grid(self, name: str, bits: int) -> Affine:
        low, high = self.range(name, bits).unbind()
        return Affine.of(low, high, bits)

    @torch.no_grad()
    def losses(
        self, bits: Mapping[str, Sequence[int]], centred: Collection[str], batches: Batches
    ) -> dict[str, Tensor]:
        """Module → (numbers,) what its outputs lose where its inputs have so many bits: 1 − R², measured in one pass.

        Args:
            bits: module → numbers of bits.
            centred: modules of which the outputs' means do not count, since a constant behind makes up for them.
            batches: images that tell.

        Returns:
            Each in double precision, 0 or more.
        """
        grids = {name: [self._grid(name, number) for number in numbers] for name, numbers in bits.items()}
        sums: dict[str, Tensor] = {}

        def look(name: str, module: Any, x: Tensor, y: Tensor) -> None:
            missed = (module.forward(grid.real(grid.codes(x))) - y for grid in grids[name])
            found = torch.stack([_sums(part, module) for part in chain(missed, [y])], dim=1)
            sums[name] = sums[name] + found if name in sums else found

        _watch(self.model, batches, {name: lambda m, x, y, name=name: look(name, m, x, y) for name in grids})
        lost = {}
        for name, (squares, firsts, counts) in sums.items():
            spread = (squares - firsts.square() / counts if name in centred else squares).sum(1).clamp_min(0.0)
            lost[name] = spread[:-1] / spread[-1].clamp_min(torch.finfo(spread.dtype).tiny)
        return lost


def best_range(values: Tensor, bits: int) -> Tensor:
    """(2,) the range whose grid loses least of the values."""
    ends = torch.stack([values.min(), values.max()])

    def error(limits: Tensor) -> float:
        grid = Affine.of(limits[0], limits[1], bits)
        return float((grid.real(grid.codes(values)) - values).square().sum())

    found: Tensor = min((ends * ratio for ratio in RATIOS.tolist()), key=error)
    return found


def _sums(y: Tensor, module: nn.Module) -> Tensor:
    """(3, outputs) Σ of the squares, Σ, and of how many."""
    rows = y.detach().movedim(-1 if isinstance(module, nn.Linear) else 1, -1).flatten(0, -2)
    squares, firsts = rows.square().sum(0, dtype=torch.float64), rows.sum(0, dtype=torch.float64)
    return torch.stack([squares, firsts, torch.full_like(firsts, len(rows))])


def _watch(model: nn.Module, batches: Batches, looks: Mapping[str, Any]) -> None:
    """One pass, in which every module's (itself, input, output) are looked at."""
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, args, y, look=look: look(m, args[0], y))
        for name, look in looks.items()
    ]
    try:
        for images, _ in batches:
            call(model, images)
    finally:
        for hook in hooks:
            hook.remove()


def _some(values: Tensor) -> Tensor:
    """At most `KEPT` of them, and the ends."""
    if len(values) <= KEPT:
        return values
    return torch.cat([torch.stack([values.min(), values.max()]), values[:: -(-len(values) // KEPT)]])
