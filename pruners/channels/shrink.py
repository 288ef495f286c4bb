"""Cut channels out: a physically smaller network, or the masked one it must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...networks import ChannelPad, SampledConv2d
from ...networks.channel_norms import NormOfKept, normalised_dim
from ...networks.copying import rebuilt
from ...networks.norms import CONVOLUTIONS, TRANSPOSED
from ..structure import Kept, Structure
from .branches import Means, close, constant_of, without
from .slices import SOURCE, ChannelStructure, Selection


def shrink(
    model: nn.Module, structure: ChannelStructure, selection: Selection, means: Means | None = None
) -> nn.Module:
    """A smaller network that holds only the selected units.

    Tensors that do not shrink are shared with `model`, buffers excepted (batch-norm statistics may be re-estimated
    in place): a candidate costs no copy of what it does not change. Whoever trains the result copies it first.

    Args:
        model: the dense network; not changed.
        structure: its layers.
        selection: for every layer the units that stay, ascending.
        means: what is added where a branch is gone; see `without`.
    """
    gone = structure.gone([len(keep) for keep in selection])
    whole = without(model, gone, means) if gone else model
    return narrow(whole, structure.positions(selection))


def first_units(model: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
    """The network that holds the first so many units (layers,) of every layer: `Structure.first_units`."""
    return shrink(model, cast(ChannelStructure, structure), [np.arange(count) for count in kept])


def narrow(model: nn.Module, kept: Mapping[tuple[str, int], NDArray[np.int64]]) -> nn.Module:
    """`shrink`, told directly which positions of which tensor stay: all that is needed to rebuild a pruned network.

    Args:
        model: the dense network; not changed.
        kept: (tensor's name, dim) → positions that stay, ascending.
    """
    names = {name for name, _ in kept}

    def cut(name: str, tensor: Tensor) -> Tensor:
        for dim in range(tensor.dim()) if name in names else ():
            if (name, dim) in kept:
                tensor = tensor.index_select(dim, torch.from_numpy(kept[name, dim]).to(tensor.device))
        return tensor

    pads = {f"{name}.{SOURCE}" for name, module in model.named_modules() if isinstance(module, ChannelPad)}
    small = rebuilt(model, lambda name, tensor: tensor if name in pads else cut(name, tensor))
    for name, module in small.named_modules():  # all: a tensor may be that of several
        _refresh(module, kept.get((f"{name}.weight".strip("."), 0)))
    for name in names:
        owner, _, what = name.rpartition(".")
        own = small.get_submodule(owner)
        if what == SOURCE:
            _take(small, owner, *(_tensor(kept.get((name, dim))) for dim in (0, 1)))
        elif isinstance(getattr(own, what), int):  # what its forward counts heads or parts by
            setattr(own, what, len(kept[name, 0]))
    return small


def _take(small: nn.Module, owner: str, keep_out: Tensor | None, keep_in: Tensor | None) -> None:
    """Narrow what a module without a weight for it takes of its input."""
    module = small.get_submodule(owner)
    if isinstance(module, ChannelPad):
        module.select(keep_in, keep_out)
    elif keep_out is not None:
        assert isinstance(module, nn.Conv2d)
        small.set_submodule(owner, SampledConv2d.of(module, keep_out.to(module.weight.device)))


def check_positions(model: nn.Module, kept: Mapping[tuple[str, int], NDArray[np.int64]]) -> None:
    """Whether a network has what `narrow` is told to keep; the arguments are its.

    Raises:
        ValueError: it has no such tensor, dimension or positions, or they do not ascend.
    """
    shapes = {name: tuple(t.shape) for name, t in (*model.named_parameters(), *model.named_buffers())}
    for name, module in model.named_modules():
        if isinstance(module, ChannelPad):
            shapes[f"{name}.{SOURCE}"] = (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Conv2d):
            shapes.setdefault(f"{name}.{SOURCE}", (module.in_channels,))
        for attribute, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool):
                shapes.setdefault(f"{name}.{attribute}".strip("."), (value,))
    for (name, dim), positions in kept.items():
        if name not in shapes or dim >= len(shapes[name]):
            what = f"tensor {name[:80]!r}" if name not in shapes else f"dimension {dim} of {name}"
            raise ValueError(f"this network has no {what}")
        if np.any(np.diff(positions) <= 0) or positions[-1] >= shapes[name][dim]:
            raise ValueError(
                f"the positions that stay of {name}, dimension {dim}, do not ascend within 0 … {shapes[name][dim] - 1}"
            )


def mask(model: nn.Module, structure: ChannelStructure, selection: Selection, means: Means | None = None) -> nn.Module:
    """The dense-shaped network with the removed units zeroed, in producers, between, and in consumers.

    It computes what `shrink` gives and saves nothing: the oracle. Zeroing the consumers' inputs matters, since
    a masked convolution's batch norm and activation still emit a constant. Where a branch is gone, everything in front
    of its last layer is still computed, and what comes out is the constant.
    """
    zeroed: dict[str, list[tuple[int, Tensor]]] = {}
    for layer, keep in zip(structure.layers, selection, strict=True):
        gone = np.setdiff1d(np.arange(layer.units), keep)
        for part in layer.slices:
            if len(gone) and part.tensor not in ("running_mean", "running_var"):
                zeroed.setdefault(part.parameter, []).append((part.dim, torch.from_numpy(part.positions[gone].ravel())))
    pads = {f"{name}.{SOURCE}": name for name, module in model.named_modules() if isinstance(module, ChannelPad)}

    def zero(name: str, tensor: Tensor) -> Tensor:
        if name not in zeroed or name in pads:
            return tensor
        tensor = tensor.clone()
        for dim, positions in zeroed[name]:
            tensor.index_fill_(dim, positions.to(tensor.device), 0.0)
        return tensor

    masked = rebuilt(model, zero)
    for name, module in list(masked.named_modules()):
        removed = zeroed.get(f"{name}.weight".strip("."))
        if removed is not None and normalised_dim(module) is not None:
            absent = torch.cat([positions for _, positions in removed])
            if len(absent) < len(module.get_parameter("weight")):
                masked.set_submodule(name, _of_kept(module, absent))
    for source, name in pads.items():
        pad = masked.get_submodule(name)
        assert isinstance(pad, ChannelPad)
        for dim, positions in zeroed.get(source, ()):  # a shortcut would carry a removed channel on to the next trunk
            indices = pad.source if dim == 1 else torch.arange(pad.out_channels, device=pad.source.device)
            pad.source[torch.isin(indices, positions.to(pad.source.device))] = -1
            pad.intact = False
    for branch in structure.gone([len(keep) for keep in selection]):
        constant = constant_of(model, branch, means).clone()
        for dim, positions in zeroed.get(f"{branch.exit}.weight", ()):
            if dim == 0:
                constant.index_fill_(0, positions.to(constant.device), 0.0)
        close(masked, branch, constant)
    return masked


def _of_kept(norm: nn.Module, gone: Tensor) -> NormOfKept:
    """A norm over channels without those that are gone."""
    weight, dim = norm.get_parameter("weight"), normalised_dim(norm)
    assert dim is not None
    kept = np.setdiff1d(np.arange(len(weight)), gone.numpy())
    small = narrow(norm, {(name, 0): kept for name, _ in norm.named_parameters()})
    return NormOfKept(small, torch.from_numpy(kept).to(weight.device), dim).train(norm.training)


def _refresh(module: Any, rows: NDArray[np.int64] | None) -> None:  # Any: nn.Module knows none of these
    """Make a module's own account of its sizes true again; `rows` of its weight stay, all where there are none."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        outputs, inputs = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
        if rows is not None and module.groups > 1:  # of each group some are left, or none
            dense = module.in_channels if isinstance(module, TRANSPOSED) else module.out_channels
            module.groups = len(np.unique(rows // (dense // module.groups)))
        sizes = (weight.shape[0], weight.shape[1] * module.groups)  # the second dimension counts inside a group
        module.out_channels, module.in_channels = sizes[outputs], sizes[inputs]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        statistics: Any = module.running_mean if weight is None else weight
        module.num_features = module.num_features if statistics is None else len(statistics)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_groups = module.num_groups * len(weight) // module.num_channels
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif normalised_dim(module) is not None and hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]


def _tensor(positions: NDArray[np.int64] | None) -> Tensor | None:
    return None if positions is None else torch.from_numpy(positions)
