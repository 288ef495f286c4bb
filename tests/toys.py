"""Toys with a known answer, for what needs no real network."""

from __future__ import annotations

import numpy as np

from secateur.envs import Evaluation, LayerSparsityEnv
from secateur.networks import digits_resnet
from secateur.pruners.budget import Budget
from secateur.pruners.coupling import find_layers
from secateur.pruners.layers import Structure


def digits_structure() -> Structure:
    return find_layers(digits_resnet(), (1, 8, 8))


class QuadraticEvaluator:
    """Accuracy falls with the squared distance from known sparsities; counts what it is asked."""

    def __init__(self, structure: Structure, best: np.ndarray):
        self.structure = structure
        self.best = best
        self.asked = 0

    def evaluate(self, widths: np.ndarray) -> Evaluation:
        self.asked += 1
        distance = float(np.square(1.0 - widths / self.structure.widths - self.best).mean())
        flops, params = (self.structure.fraction(kind, widths) for kind in ("flops", "params"))
        return Evaluation(100.0 * (1.0 - distance), distance, flops, params)


def toy_env(fraction: float = 0.4) -> LayerSparsityEnv:
    """Six layers of a digits ResNet; it is best to cut the early ones hard and the late ones little."""
    structure = digits_structure()
    best = np.linspace(0.8, 0.2, len(structure.layers))
    statistics = np.random.default_rng(0).uniform(size=(len(structure.layers), 4)).astype(np.float32)
    return LayerSparsityEnv(Budget(structure, "flops", fraction), QuadraticEvaluator(structure, best), statistics)
