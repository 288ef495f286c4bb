"""What the agent sees of a layer: every feature named, scaled to about [0, 1], the same for any depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..pruners.context import Context

ERROR_SPARSITIES = (0.25, 0.5, 0.75)

METHOD_FEATURES = ("linear", "trunk", "inputs", "consumers", "resolution", "stride", "kernel", "bn_scale", "bn_spread")
"""What `Method.features` may say of a layer, in plain numbers; `trunk` and the batch norms' are 0 where it does not."""

STATIC_FEATURES = {
    "index": "position in the walk, 0 first, 1 last",
    "linear": "1 for a linear layer, 0 for a convolution",
    "trunk": "1 if several producers share the channels (a residual trunk)",
    "units": "log2 of its dense units, over 20",
    "inputs": "log2 of its first producer's inputs, over 12",
    "consumers": "log2 of all its consumers' outputs, over 12",
    "resolution": "log2 of its first producer's output pixels, over 16",
    "stride": "its first producer's stride, over 4",
    "kernel": "its first producer's kernel size, over 7",
    "flops": "share of the dense FLOPs that its units scale, over all layers' largest share",
    "params": "the same of the parameters",
    "weight_norm": "mean norm of a unit, over the largest of any layer",
    "weight_spread": "coefficient of variation of its units' norms, over 2",
    "bn_scale": "mean |γ| of its batch norms, over the largest of any layer; 0 without",
    "bn_spread": "coefficient of variation of |γ|, over 2",
    "concentration": "share of the norms held by the larger half of the units, rescaled from [½, 1] to [0, 1]",
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


def layer_statistics(context: Context) -> NDArray[np.float32]:
    """(layers, static features): what each layer's own numbers say, computed once on the dense network."""
    structure = context.structure
    curves = context.method.curves(context)
    rows = np.zeros((len(structure.layers), len(STATIC_FEATURES)))
    names = list(STATIC_FEATURES)
    for i, (layer, curve) in enumerate(zip(structure.layers, curves, strict=True)):
        values = {
            "index": i / max(1, len(structure.layers) - 1),
            **_shape_features(context, i),
            **_weight_features(np.sqrt(context.method.sizes(context, layer))),
            **{
                f"error_{int(100 * s)}": np.sqrt(np.interp((1.0 - s) * layer.units, layer.levels, curve))
                for s in ERROR_SPARSITIES
            },
        }
        rows[i] = [values[name] for name in names]
    for name in ("flops", "params", "weight_norm", "bn_scale"):
        column = rows[:, names.index(name)]
        column /= max(float(column.max()), 1e-12)
    return np.clip(rows, 0.0, 1.0).astype(np.float32)


def _shape_features(context: Context, index: int) -> dict[str, float]:
    structure = context.structure
    layer = structure.layers[index]
    told = {"trunk": 0.0, "bn_scale": 0.0, "bn_spread": 0.0, **context.method.features(context, layer)}
    gone = structure.units.copy()
    gone[index] = 0
    return {
        "linear": told["linear"],
        "trunk": told["trunk"],
        "units": np.log2(layer.units) / 20,
        "inputs": np.log2(max(1.0, told["inputs"])) / 12,
        "consumers": np.log2(max(1.0, told["consumers"])) / 12,
        "resolution": np.log2(max(1.0, told["resolution"])) / 16,
        "stride": told["stride"] / 4,
        "kernel": told["kernel"] / 7,
        "flops": 1.0 - structure.fraction("flops", gone),
        "params": 1.0 - structure.fraction("params", gone),
        "bn_scale": told["bn_scale"],
        "bn_spread": told["bn_spread"] / 2,
    }


def _weight_features(norms: NDArray[np.float64]) -> dict[str, float]:
    mean = max(float(norms.mean()), 1e-12)
    half = np.sort(norms)[::-1][: (len(norms) + 1) // 2].sum() / max(float(norms.sum()), 1e-12)
    return {
        "weight_norm": mean,
        "weight_spread": float(norms.std()) / mean / 2,
        "concentration": 2.0 * float(half) - 1.0,
    }
