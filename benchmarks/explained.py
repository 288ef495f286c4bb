"""Which features of layers explain the factors that the loss model is given by evaluated plans: regressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from common import table
from experience import Group
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from secateur.agents.features import FEATURES, MODEL_FEATURES

Columns = NDArray[np.float64]
SHOWN = 10  # features, the most telling first


def factor_tables(groups: Sequence[Group]) -> str:
    """R² of fitted factors (their logarithm, less the network's mean) on families left out, and what it rests on."""
    rows = []
    for name, parts in {
        "of a network": _by_network(groups),
        "of a network and a budget": ([g] for g in groups),
    }.items():
        x, y, families = _samples(parts)
        for title, columns in _chosen().items():
            found = [_left_out(make, x[:, columns], y, families) for make in (_ridge, _forest)]
            rows.append([name, title, f"{len(y)}", *(f"{value:+.2f}" for value in found)])
    head = ["factors", "features", "layers", "ridge: R² left out", "random forest: R² left out"]
    x, y, families = _samples(_by_network(groups))
    drops = _importances(x, y, families)
    order = np.argsort(-drops)[:SHOWN]
    telling = table(["feature", "R² lost where it is shuffled"], [[FEATURES[i], f"{drops[i]:+.3f}"] for i in order])
    return f"{table(head, rows)}\n\n{telling}"


def _chosen() -> dict[str, list[int]]:
    everything = list(range(len(FEATURES)))
    model = [FEATURES.index(name) for name in MODEL_FEATURES]
    return {
        "all": everything,
        "of the layer alone": [i for i in everything if i not in model],
        "of the loss model, neighbours and budget": model,
    }


def _by_network(groups: Sequence[Group]) -> Iterator[list[Group]]:
    for _, of_one in groupby(groups, key=lambda group: group.network):
        yield list(of_one)


def _samples(parts: Iterator[list[Group]]) -> tuple[Columns, Columns, NDArray[np.str_]]:
    """(layers, features), (layers,) logarithms of factors, (layers,) families."""
    xs, ys, families = [], [], []
    for groups in parts:
        plans, distances = (np.concatenate([getattr(g, name) for g in groups]) for name in ("plans", "distances"))
        logs = np.log(groups[0].losses.fitted(plans, distances).factors)
        xs.append(np.mean([group.features for group in groups], axis=0))
        ys.append(logs - logs.mean())
        families += [groups[0].family] * len(logs)
    return np.concatenate(xs), np.concatenate(ys), np.array(families)


def _ridge() -> RegressorMixin:
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9)))


def _forest() -> RegressorMixin:
    return RandomForestRegressor(50, min_samples_leaf=5, max_features=0.5, random_state=0)


def _left_out(make: object, x: Columns, y: Columns, families: NDArray[np.str_]) -> float:
    """1 − squares left over squares there are, of factors predicted with their family left out."""
    predicted = np.empty_like(y)
    for family in np.unique(families):
        out = families == family
        predicted[out] = make().fit(x[~out], y[~out]).predict(x[out])  # type: ignore[operator]
    return 1.0 - float(np.square(y - predicted).sum() / np.square(y).sum())


def _importances(x: Columns, y: Columns, families: NDArray[np.str_]) -> Columns:
    """(features,) the mean over families of what shuffling costs a forest learnt without them."""
    drops = [
        permutation_importance(
            _forest().fit(x[families != family], y[families != family]),
            x[families == family],
            y[families == family],
            n_repeats=3,
            random_state=0,
        ).importances_mean
        for family in np.unique(families)
    ]
    return np.asarray(np.mean(drops, axis=0))
