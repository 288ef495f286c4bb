"""What `population.py` logged, as arrays, and a correction of loss models that is learnt from it.

Everything here is offline: no plan is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from population import BUDGETS, Recipe, affordable
from torch import Tensor

from secateur import Session
from secateur.agents.correction import FAR, MOST_BEND, MOST_SCALE, Correction
from secateur.agents.features import FEATURES, base_terms, layer_features
from secateur.agents.log import CANDIDATES_NAME, read_candidates
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel
from secateur.pruners.structure import Floats

STEPS = 50
LEAST_LOSS = 1e-5
LEAST_SCALE = 1e-3  # a standard deviation of a feature that is all but constant


@dataclass(frozen=True)
class Group:
    """The plans of one network at one budget.

    Attributes:
        network: its name.
        family: that it is left out with.
        budget: of its plans.
        features: (layers, features).
        losses: the loss model, as predicted.
        plans: (plans, layers) units kept.
        mean: what its own plan is predicted to lose in a layer, in the mean.
        distances: (plans,) what they really lost.
    """

    network: str
    family: str
    budget: Budget
    features: Floats
    losses: LossModel
    plans: NDArray[np.int64]
    mean: float
    distances: Floats

    @cached_property
    def terms(self) -> Floats:
        """(plans, layers) what each plan is predicted to lose in each layer."""
        return self.losses.terms(self.plans)


def groups_of(recipe: Recipe, session: Session, out: Path) -> list[Group]:
    """What was logged of a network; nothing, where nothing was."""
    losses = LossModel.of(session.context)
    lines = logged(out / recipe.name)
    found = []
    for fraction in BUDGETS:
        budget = affordable(session.budget, fraction)
        mine = [line for line in lines if min(BUDGETS, key=lambda b: abs(b - line["flops"])) == fraction]
        if budget is None or len(mine) < 3:
            continue
        plans = np.array([line["kept"] for line in mine])
        distances = np.maximum([line["reconstruction_loss"] for line in mine], LEAST_LOSS)
        mean = max(float(base_terms(losses, budget)[1].mean()), LEAST_LOSS / 100)
        features = layer_features(session.context, losses, budget)
        found.append(Group(recipe.name, recipe.family, budget, features, losses, plans, mean, distances))
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a network's log, none where there is none."""
    path = folder / CANDIDATES_NAME
    return read_candidates(path) if path.exists() else []


def learn(groups: Sequence[Group], *, seed: int, ridge: float = 3.0, draws: int = 5) -> Correction:
    """A correction that makes predicted losses of plans of one budget proportional to those found, as far as it can.

    The squared error of the losses' logarithms, each less its budget's mean, for what all plans of a budget lose
    together decides nothing between them; every network counts alike. The mean of several fits, each to networks that
    are drawn with replacement (bagging, Breiman 1996).

    Args:
        groups: to learn from.
        seed: draws the networks.
        ridge: of the weights.
        draws: fits that are averaged.
    """
    stacked = np.concatenate([group.features for group in groups])
    centre, scale = stacked.mean(axis=0), np.maximum(stacked.std(axis=0), LEAST_SCALE)
    rng = np.random.default_rng(seed)
    names = sorted({group.network for group in groups})
    fits = []
    for _ in range(draws):
        counts = dict(zip(names, rng.multinomial(len(names), np.full(len(names), 1 / len(names))), strict=True))
        chosen = [group for group in groups if counts[group.network]]
        fits.append(_fit(Batch.of(chosen, centre, scale, [float(counts[g.network]) for g in chosen]), ridge))
    weight, bias = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
    return Correction(centre, scale, weight, bias, {})


@dataclass(frozen=True)
class Batch:
    """Groups as tensors, padded with layers and plans that count for nothing."""

    features: Tensor
    terms: Tensor
    means: Tensor
    losses: Tensor
    plans: Tensor
    weights: Tensor

    @classmethod
    def of(cls, groups: Sequence[Group], centre: Floats, scale: Floats, counts: Sequence[float]) -> Batch:
        layers, plans = (max(group.terms.shape[axis] for group in groups) for axis in (1, 0))
        shape = (len(groups), plans, layers)
        features, terms = np.zeros((len(groups), layers, len(FEATURES))), np.zeros(shape)
        losses, there, weights = np.zeros(shape[:2]), np.zeros(shape[:2]), np.zeros(len(groups))
        per_network = {group.network: sum(other.network == group.network for other in groups) for group in groups}
        for index, (group, count) in enumerate(zip(groups, counts, strict=True)):
            number, width = group.terms.shape
            features[index, :width] = np.clip((group.features - centre) / scale, -FAR, FAR)
            terms[index, :number, :width] = group.terms
            losses[index, :number], there[index, :number] = np.log(group.distances), 1.0
            weights[index] = count / per_network[group.network]
        arrays = (features, terms, np.array([group.mean for group in groups]), losses, there, weights / weights.sum())
        return cls(*(torch.from_numpy(array) for array in arrays))

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The mean square of what is left of the centred logarithms."""
        raw = torch.tanh(self.features @ weight.T + bias)
        scale, bend = MOST_SCALE * raw[..., 0].unsqueeze(1), MOST_BEND * raw[..., 1].unsqueeze(1)
        ratio = self.terms / self.means[:, None, None]
        gone = ratio > 0.0
        corrected = torch.where(gone, torch.exp(scale + (1.0 + bend) * ratio.clamp(min=1e-12).log()), 0.0)
        left = (corrected.sum(dim=2).clamp(min=1e-12).log() - self.losses) * self.plans
        left = (left - left.sum(dim=1, keepdim=True) / self.plans.sum(dim=1, keepdim=True)) * self.plans
        return (self.weights * left.square().sum(dim=1) / self.plans.sum(dim=1)).sum()


def _fit(batch: Batch, ridge: float) -> tuple[Floats, Floats]:
    """Weight (2, features) and bias (2,): of u it is 0, as it decides nothing and would drift to where tanh is flat."""
    weight = torch.zeros(2, len(FEATURES), dtype=torch.float64, requires_grad=True)
    bend = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bend], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        bias = torch.cat([torch.zeros_like(bend), bend])
        found = batch.error(weight, bias) + ridge * weight.square().sum() / len(FEATURES)
        found.backward()
        return found

    optimizer.step(loss)
    return weight.detach().numpy().copy(), np.array([0.0, bend.item()])


def unexplained(correction: Correction | None, groups: Sequence[Group]) -> float:
    """The part of log losses' variance within a budget that predictions leave, all groups together.

    Args:
        correction: of the loss model; none takes it as predicted.
        groups: to predict.
    """
    left = whole = 0.0
    for group in groups:
        ratio = group.terms / group.mean
        if correction is not None:
            u, v = correction.answers(group.features)
            ratio = np.exp(u) * ratio ** (1.0 + v)
        losses = np.log(group.distances)
        left += float((np.log(np.maximum(ratio.sum(axis=1), 1e-12)) - losses).var())
        whole += float(losses.var())
    return left / whole
