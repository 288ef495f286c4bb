"""Rules that look at shapes or error curves: nothing is judged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pruners.criteria import elimination
from ...pruners.layers import Layer, Structure
from ...pruners.shares import branch_shares
from .registry import Allocation, Widths, register_allocator


@register_allocator("uniform")
def uniform(allocation: Allocation) -> Widths:
    """Every layer the same sparsity."""
    return allocation.budget.fill(allocation.dense)


@register_allocator("shallow")
def shallow(allocation: Allocation) -> Widths:
    """Early layers are pruned most: what is kept rises linearly with depth, threefold from first to last (AMC)."""
    return allocation.budget.fill(allocation.dense * _ramp(allocation))


@register_allocator("deep")
def deep(allocation: Allocation) -> Widths:
    """Late layers are pruned most: the mirror image of `shallow`."""
    return allocation.budget.fill(allocation.dense * _ramp(allocation)[::-1])


@register_allocator("threshold")
def threshold(allocation: Allocation) -> Widths:
    """One threshold on all error curves: every layer keeps as few channels as leave its repair error below it.

    The error is what is lost of the residual sum that the layer's branch joins: a branch that adds little to its trunk
    may lose much of it.
    """
    budget, context = allocation.budget, allocation.context
    shares = branch_shares(context)
    curves = [
        share * elimination(context, layer).errors for share, layer in zip(shares, budget.structure.layers, strict=True)
    ]

    def below(level: float) -> Widths:
        kept = [int(np.argmax(curve <= level)) for curve in curves]  # the curves fall to 0
        return np.maximum(np.array(kept, dtype=np.int64), budget.least)

    low, high = 0.0, max(float(curve[0]) for curve in curves)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.cost(below(middle)) <= budget.limit else (middle, high)
    return budget.spend(below(high), below(low).astype(np.float64))


@register_allocator("erk")
def erk(allocation: Allocation) -> Widths:
    """Erdős–Rényi kernel: a layer keeps a fraction of its units proportional to its `density`, one at most.

    Mocanu et al., Nature Communications 2018; with kernels, Evci et al., ICML 2020, sec. 3. There it is the fraction
    of a layer's weights; here, of its channels.
    """
    structure = allocation.budget.structure
    densities = np.array([density(structure, layer) for layer in structure.layers])
    return allocation.budget.fill(allocation.dense * densities)


def density(structure: Structure, layer: Layer) -> float:
    """(c_in + c_out + k_h + k_w) / (c_in · c_out · k_h · k_w) of the producer; coupled producers pool theirs.

    Pooled is Σ numerators / Σ denominators: together they keep as many weights as each with its own. Where a layer
    samples its input, the convolution that does stands for the producer.
    """
    shapes = [structure.shapes[part.parameter] for part in layer.weights("in" if layer.sampled else "out")]
    return sum(sum(shape) for shape in shapes) / sum(int(np.prod(shape)) for shape in shapes)


def _ramp(allocation: Allocation) -> NDArray[np.float64]:
    return np.linspace(0.5, 1.5, len(allocation.dense))
