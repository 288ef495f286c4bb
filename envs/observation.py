"""What the agent sees of a layer: every feature named, scaled to about [0, 1], the same for any depth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..pruners.criteria import Context
from ..pruners.criteria.norms import l1
from ..pruners.layers import Layer, Structure
from ..pruners.pruner import ChannelPruner
from ..pruners.reconstruction import repair_error

ERROR_SPARSITIES = (0.25, 0.5, 0.75)

STATIC_FEATURES = {
    "index": "position in the walk, 0 first, 1 last",
    "linear": "1 for a linear layer, 0 for a convolution",
    "trunk": "1 if several producers share the channels (a residual trunk)",
    "width": "log2 of its dense width, over 12",
    "inputs": "log2 of its first producer's inputs, over 12",
    "consumers": "log2 of all its consumers' outputs, over 12",
    "resolution": "log2 of its first producer's output pixels, over 16",
    "stride": "its first producer's stride, over 4",
    "kernel": "its first producer's kernel size, over 7",
    "flops": "share of the dense FLOPs that its own width scales, over all layers' largest share",
    "params": "the same of the parameters",
    "weight_norm": "mean filter norm, over the largest of any layer",
    "weight_spread": "coefficient of variation of its filter norms, over 2",
    "bn_scale": "mean |γ| of its batch norms, over the largest of any layer; 0 without",
    "bn_spread": "coefficient of variation of |γ|, over 2",
    "concentration": "share of the filter norms held by the larger half of them, rescaled from [½, 1] to [0, 1]",
    **{
        f"error_{int(100 * s)}": f"√(1 − R²) of its consumers' repaired outputs with {int(100 * s)} % of it removed"
        for s in ERROR_SPARSITIES
    },
}

WALK_FEATURES = {
    "reduced": "cost removed by the layers walked so far, as a fraction of the dense cost",
    "rest": "cost that the layers still to come could remove, as a fraction of the dense cost",
    "budget": "the budget asked, as a fraction",
    "base": "the sparsity that action 0 stands for: the loss model's, with what is left of the budget",
    "least": "the smallest sparsity allowed here",
    "most": "the largest sparsity allowed here",
    "last_action": "sparsity of the layer before",
}


def layer_statistics(pruner: ChannelPruner) -> NDArray[np.float32]:
    """(layers, static features): what each layer's own numbers say, computed once on the dense network."""
    structure = pruner.structure
    rows = np.zeros((len(structure.layers), len(STATIC_FEATURES)))
    names = list(STATIC_FEATURES)
    for i, layer in enumerate(structure.layers):
        values = {
            "index": i / max(1, len(structure.layers) - 1),
            **_shape_features(structure, layer),
            **_weight_features(pruner.context, layer),
            **_error_features(pruner, i),
        }
        rows[i] = [values[name] for name in names]
    for name in ("flops", "params", "weight_norm", "bn_scale"):
        column = rows[:, names.index(name)]
        column /= max(float(column.max()), 1e-12)
    return np.clip(rows, 0.0, 1.0).astype(np.float32)


def _shape_features(structure: Structure, layer: Layer) -> dict[str, float]:
    operation = next(op for op in structure.operations if op.module == layer.module)
    outputs = sum(structure.shapes[part.parameter][0] for part in layer.weights("in"))
    widths = structure.widths
    widths[structure.index(layer.name)] = 0
    return {
        "linear": float(len(operation.shape) == 2),
        "trunk": float(layer.trunk),
        "width": np.log2(layer.width) / 12,
        "inputs": np.log2(operation.shape[1]) / 12,
        "consumers": np.log2(max(1, outputs)) / 12,
        "resolution": np.log2(operation.output[0] * operation.output[1]) / 16,
        "stride": operation.stride / 4,
        "kernel": operation.shape[-1] / 7 if len(operation.shape) > 2 else 1 / 7,
        "flops": 1.0 - structure.fraction("flops", widths),
        "params": 1.0 - structure.fraction("params", widths),
    }


def _weight_features(context: Context, layer: Layer) -> dict[str, float]:
    model, norms = context.model, l1(context, layer)
    filters = sum(filters.shape[1] for filters in context.filters(layer))
    scales = np.zeros(layer.width)
    for part in layer.slices:
        if part.role == "through" and part.tensor == "weight":
            module = model.get_submodule(part.module)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                gamma = module.weight.detach().abs().double().cpu()
                scales += gamma[torch.from_numpy(part.positions)].mean(1).numpy()
    half = np.sort(norms)[::-1][: (layer.width + 1) // 2].sum() / max(float(norms.sum()), 1e-12)
    return {
        "weight_norm": float(norms.mean()) / filters,
        "weight_spread": float(norms.std() / max(float(norms.mean()), 1e-12)) / 2,
        "bn_scale": float(scales.mean()),
        "bn_spread": float(scales.std() / max(float(scales.mean()), 1e-12)) / 2,
        "concentration": 2.0 * float(half) - 1.0,
    }


def _error_features(pruner: ChannelPruner, index: int) -> dict[str, float]:
    order = pruner.ranking[index]
    return {
        f"error_{int(100 * sparsity)}": float(
            np.sqrt(repair_error(pruner.dense, pruner.structure, index, order, sparsity, pruner.moments))
        )
        for sparsity in ERROR_SPARSITIES
    }
