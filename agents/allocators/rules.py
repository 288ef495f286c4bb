"""Rules that look at shapes or error curves: nothing is evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pruners.repair.residual_branches import residual_branch_variance
from ...pruners.structure import Kept, Layer, Structure
from .registry import SearchProblem, register_allocator


@register_allocator("uniform")
def uniform(problem: SearchProblem) -> Kept:
    """Every layer the same sparsity."""
    return problem.budget.fill(problem.dense)


@register_allocator("shallow")
def shallow(problem: SearchProblem) -> Kept:
    """Early layers are pruned most: what is kept rises linearly with depth, threefold from first to last (AMC)."""
    return problem.budget.fill(problem.dense * _ramp(problem))


@register_allocator("deep")
def deep(problem: SearchProblem) -> Kept:
    """Late layers are pruned most: the mirror image of `shallow`."""
    return problem.budget.fill(problem.dense * _ramp(problem)[::-1])


@register_allocator("threshold")
def threshold(problem: SearchProblem) -> Kept:
    """One threshold on all error curves: every layer keeps as few units as leave its repair error below it.

    The error is what is lost of the residual sum that the layer's branch joins: a branch that adds little to its trunk
    may lose much of it.
    """
    budget, context = problem.budget, problem.context
    layers = budget.structure.layers
    curves = [
        share * curve
        for share, curve in zip(residual_branch_variance(context), context.method.curves(context), strict=True)
    ]

    def below(level: float) -> Kept:
        kept = [layer.levels[np.argmax(curve <= level)] for layer, curve in zip(layers, curves, strict=True)]  # falling
        return np.clip(np.array(kept, dtype=np.int64), budget.least, budget.most)

    low, high = 0.0, max(1.0, *(float(curve[0]) for curve in curves))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.cost(below(middle)) <= budget.limit else (middle, high)
    return budget.spend(below(high), below(low).astype(np.float64))


@register_allocator("erk")
def erk(problem: SearchProblem) -> Kept:
    """Erdős–Rényi kernel: a layer keeps a fraction of its units proportional to its `density`, one at most.

    Mocanu et al., Nature Communications 2018; with kernels, Evci et al., ICML 2020, sec. 3. There it is the fraction
    of a layer's weights; here, of its channels.
    """
    structure = problem.budget.structure
    densities = np.array([density(structure, layer) for layer in structure.layers])
    return problem.budget.fill(problem.dense * densities)


def density(structure: Structure, layer: Layer) -> float:
    """(c_in + c_out + k_h + k_w) / (c_in · c_out · k_h · k_w) of the tensor; coupled ones pool theirs.

    Pooled is Σ numerators / Σ denominators: together they keep as many weights as each with its own.
    """
    shapes = [structure.shapes[name] for name in layer.parameters]
    return sum(sum(shape) for shape in shapes) / sum(int(np.prod(shape)) for shape in shapes)


def _ramp(problem: SearchProblem) -> NDArray[np.float64]:
    return np.linspace(0.5, 1.5, len(problem.dense))
