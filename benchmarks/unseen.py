"""Plans for networks of a family that nothing was learnt from, against the closed-form rule; and what features explain.

python benchmarks/unseen.py --data DIR --out DIR [--write FILE]
python benchmarks/unseen.py --data DIR --out DIR --imagined 400 --algorithms ddpg td3 sac
python benchmarks/unseen.py --data DIR --out DIR --unlike 1092

`--out DIR` is a population that `population.py` has trained and logged. For every family a correction of the loss model
(`secateur.agents.correction`) is learnt from all other families, three times from three seeds. Its plans and those of
`knapsack` are compared at the same cost, no candidate evaluated for either, repaired as finished plans are and measured
on search images (distance of the logits) and test images (accuracy). `own` is the loss model with factors fitted
to the network's own log: what as many candidates as that would have taught, and so what could be won. Figures that are
there already (`measured.json` in a network's folder) are not measured again. `--write` learns from all families.
With `--imagined` policies are compared, too, that agents learnt in episodes on the other families' logs.

`--unlike ROWS` says how unlike each network is all others that the package's own correction was learnt from: the part
of its layers' features that lies beyond three standard deviations, the network itself taken out of mean and deviation.
ROWS is how many rows (layers, of every network and budget) that correction was learnt from; a network that was not
among them (`--depths`) is not taken out. No plan is needed for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import error, header, table
from experience import LEAST_SCALE, Group, groups_of, learn, logged, unexplained
from explained import factor_tables
from imagined import Walker
from population import BUDGETS, Recipe, add_population, affordable, ready, recipes_of

from secateur import Session
from secateur.agents.correction import Correction, shipped
from secateur.agents.features import FEATURES, layer_features
from secateur.agents.learner import ALGORITHMS
from secateur.networks.inference import statistics
from secateur.pruners.budget import Budget
from secateur.pruners.loss_model import LossModel, best_steps
from secateur.pruners.structure import Floats, Kept
from secateur.storage.files import write_json

MEASURED_NAME = "measured.json"
BASE = "knapsack"
WHAT = ("distance, %", "top-1")  # both as differences from that

Figures = dict[str, dict[str, float]]  # distance and accuracy of every plan


@dataclass(frozen=True)
class Row:
    """A network at a budget, and the figures of its plans by who made them."""

    network: str
    family: str
    budget: float
    figures: Figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_population(parser)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--measure", nargs="+", help="these networks alone, by name; `none` measures nothing")
    parser.add_argument("--imagined", type=int, default=0, help="episodes of policies that agents learn, too")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["ddpg"], help="of these agents")
    parser.add_argument("--unlike", type=int, metavar="ROWS", help="how unlike all others the networks are, alone")
    parser.add_argument("--write", type=Path, help="the correction learnt from all, for the package")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(header())
    recipes = [recipe for recipe in recipes_of(args) if recipe.trained(args.out)]
    if args.unlike is not None:
        print(unlike(recipes, args.out, args.unlike))
        return
    groups = [group for recipe in recipes for group in groups_of(recipe, ready(recipe, args.out), args.out)]
    held_out = {
        family: [learn(others(groups, family), seed=seed) for seed in range(args.seeds)]
        for family in dict.fromkeys(recipe.family for recipe in recipes)
    }
    print(factor_tables(groups), "\n")
    print(_left(groups, held_out), "\n")
    chosen = [recipe for recipe in recipes if args.measure is None or recipe.name in args.measure]
    walkers = {family: walkers_of(others(groups, family), args) for family in {recipe.family for recipe in chosen}}
    rows = []
    for recipe in chosen:
        for fraction, figures in measured(recipe, args, held_out[recipe.family], walkers[recipe.family]):
            rows.append(Row(recipe.name, recipe.family, fraction, figures))
            print(recipe.name, fraction, figures, flush=True)
    for fraction in dict.fromkeys(row.budget for row in rows):
        print(f"\n{100 * fraction:g} % of the FLOPs\n\n{summary([row for row in rows if row.budget == fraction])}")
    if args.write is not None:
        write(args.write, groups)


def unlike(recipes: Sequence[Recipe], out: Path, rows: int) -> str:
    """A line a network: the part of its features beyond, at every budget, and which they are most of all."""
    lines = []
    for recipe in recipes:
        session = ready(recipe, out)
        losses = LossModel.of(session.context)
        budgets = {fraction: affordable(session.budget, fraction) for fraction in BUDGETS}
        found = {
            fraction: layer_features(session.context, losses, budget)
            for fraction, budget in budgets.items()
            if budget is not None
        }
        among = recipe.name in shipped().about["learnt from"].split(", ")
        rest = without(shipped(), np.concatenate([*found.values()]), rows) if among else shipped()
        beyond = {fraction: rest.beyond(features) for fraction, features in found.items()}
        often = np.mean([part.mean(axis=0) for part in beyond.values()], axis=0)
        most = ", ".join(FEATURES[i] for i in np.argsort(-often, kind="stable")[:3] if often[i])
        shares = [f"{100 * beyond[f].mean():.1f} %" if f in beyond else "" for f in BUDGETS]
        lines.append([recipe.name, "yes" if among else "no", *shares, most])
    return table(["network", "among them", *(f"{100 * fraction:g} %" for fraction in BUDGETS), "most of all"], lines)


def without(correction: Correction, features: Floats, rows: int) -> Correction:
    """Its mean and standard deviation, of so many rows, as they were without these (rows of one network, features)."""
    left = rows - len(features)
    centre = (rows * correction.centre - features.sum(axis=0)) / left
    squares = rows * (correction.scale**2 + correction.centre**2) - np.square(features).sum(axis=0)
    scale = np.sqrt(np.maximum(squares / left - centre**2, LEAST_SCALE**2))
    return replace(correction, centre=centre, scale=scale)


def others(groups: Sequence[Group], family: str) -> list[Group]:
    """Of all other families."""
    return [group for group in groups if group.family != family]


def write(path: Path, groups: Sequence[Group]) -> None:
    """The correction learnt from all there are."""
    names = sorted({group.network for group in groups})
    made = learn(groups, seed=0)
    plans = sum(len(group.distances) for group in groups)
    about = {"learnt from": ", ".join(names), "plans": str(plans), "method": "channels", "made by": header()}
    replace(made, about=about).save(path)


def _left(groups: Sequence[Group], held_out: Mapping[str, Sequence[Correction]]) -> str:
    """How well losses of plans of one budget are predicted for families left out."""
    rows = []
    for family, learnt in held_out.items():
        mine = [group for group in groups if group.family == family]
        left = [unexplained(one, mine) for one in learnt]
        rows.append([family, f"{unexplained(None, mine):.3f}", f"{np.mean(left):.3f} ± {error(left):.3f}"])
    return table(["family left out", "variance left, as predicted", "corrected"], rows)


def walkers_of(groups: Sequence[Group], args: argparse.Namespace) -> dict[str, Walker]:
    """Policies that agents learn from these, by algorithm and seed."""
    runs = [(name, seed) for name in args.algorithms for seed in range(args.seeds) if args.imagined]
    return {f"{name} {seed}": Walker(groups, args.imagined, seed, name) for name, seed in runs}


def measured(
    recipe: Recipe, args: argparse.Namespace, learnt: Sequence[Correction], walkers: Mapping[str, Walker]
) -> Iterator[tuple[float, Figures]]:
    """Budget and figures of every plan of a network, by who made it."""
    session = ready(recipe, args.out)
    for fraction in args.budgets:
        budget = affordable(session.budget, fraction)
        if budget is None:
            continue
        plans = plans_of(session, budget, args.out / recipe.name, learnt, walkers)
        yield fraction, {name: figures(session, kept, args.out / recipe.name) for name, kept in plans.items()}


def plans_of(
    session: Session, budget: Budget, folder: Path, learnt: Sequence[Correction], walkers: Mapping[str, Walker]
) -> dict[str, Kept]:
    losses = LossModel.of(session.context)
    features = layer_features(session.context, losses, budget)
    lines = logged(folder)
    own = ([line["kept"] for line in lines], [line["reconstruction_loss"] for line in lines])
    models = {
        BASE: losses,
        **({"own": losses.fitted(*own)} if lines else {}),
        **{f"policy {seed}": one.applied(losses, features, budget) for seed, one in enumerate(learnt)},
    }
    plans = {name: best_steps(budget, model.gains(budget)) for name, model in models.items()}
    return plans | {name: walker.plan(budget, losses, features) for name, walker in walkers.items()}


def figures(session: Session, kept: Kept, folder: Path) -> dict[str, float]:
    """Distance and accuracy of a plan, measured once."""
    path = folder / MEASURED_NAME
    known: Figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    key = " ".join(map(str, kept.tolist()))
    if key not in known:
        small = session.compress(kept)
        distance = session.evaluator.measure(small, kept).reconstruction_loss
        assert session.test is not None
        accuracy = session.objective.total(statistics(small, session.test, session.objective))
        known[key] = {"distance": distance, "accuracy": accuracy}
        write_json(path, known)
    return known[key]


def summary(rows: Sequence[Row]) -> str:
    """A line a network, a line a family, and the means over families and over networks."""
    who = list(dict.fromkeys(name.split()[0] for row in rows for name in row.figures if name != BASE))
    lines, families = list[list[str]](), dict[str, list[list[float]]]()
    for row in rows:
        base = row.figures[BASE]
        gains = [gained(row.figures, name) for name in who]
        families.setdefault(row.family, []).append([float(np.mean(one)) for pair in gains for one in pair])
        cells = [_spread(one) for pair in gains for one in pair]
        lines.append([row.network, f"{base['distance']:.4f}", f"{base['accuracy']:.2f}", *cells])
    means = [np.nanmean(values, axis=0).tolist() for values in families.values()]
    every = [value for values in families.values() for value in values]
    groups = {**families, f"mean of {len(means)} families": means, f"mean of {len(every)} networks": every}
    for name, values in groups.items():
        lines.append([f"**{name}**", "", "", *map(_spread, zip(*values, strict=True))])
    return table(["network", "knapsack: distance", "top-1", *(f"{n}: {x}" for n in who for x in WHAT)], lines)


def gained(figures: Figures, who: str) -> tuple[list[float], list[float]]:
    """By how many per cent the distance differs from the rule's, and by how many points the accuracy; of every seed."""
    base, mine = figures[BASE], [one for name, one in figures.items() if name.split()[0] == who]
    nearer = [100 * (one["distance"] / base["distance"] - 1) for one in mine]
    return nearer or [np.nan], [one["accuracy"] - base["accuracy"] for one in mine] or [np.nan]


def _spread(values: Sequence[float]) -> str:
    there = [value for value in values if np.isfinite(value)]
    return f"{np.mean(there):+.2f} ± {error(there):.2f}" if there else ""


if __name__ == "__main__":
    main()
