"""`secateur sensitivity`: what the network loses where one layer alone is cut, by criterion and sparsity."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torch import nn

from ..configs import Config, did_you_mean
from ..envs import CandidateEvaluator
from ..pruners.criteria import get_criterion
from ..pruners.inference import count_images
from ..pruners.layers import Layer, Structure
from ..pruners.plan import package_versions, write_json
from ..pruners.pruner import ChannelPruner
from ..pruners.reconstruction import DenseMoments, collect_moments, repair_from_moments
from ..pruners.sensitivity import output_error, spread_layers
from ..pruners.shrink import shrink
from ..reports.figures import sensitivity_figure
from ..reports.progress import Reporter
from .apply import task_for_plans
from .folders import check_free, new_folder
from .task import Images, Task, describe

SENSITIVITY_NAME = "sensitivity.json"
CRITERIA = ("first_k", "random", "l1", "max_response", "lasso", "obs")
SPARSITIES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
LAYERS = 3

OneLayerRepair = Literal["none", "gram"]


@dataclass(frozen=True)
class Sensitivity:
    """What a measurement of single layers leaves behind.

    Attributes:
        points: one a layer, criterion and sparsity, as `sensitivity.json` holds them.
        folder: where everything was written.
    """

    points: list[dict[str, Any]]
    folder: Path


def sensitivity(
    config: Config | str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    criteria: Sequence[str] | None = None,
    sparsities: Sequence[float] | None = None,
    repair: OneLayerRepair = "gram",
    model: nn.Module | None = None,
    images: Images | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    trust_code: bool = False,
) -> Sensitivity:
    """Cut one layer at a time, the others whole, and measure on the search images what is lost.

    The first figure of channel pruning (He, Zhang, Sun, ICCV 2017, fig. 4) for any network and criterion: units are
    chosen and the consumers repaired on the calibration images, everything is measured on the search images, which the
    repair has not seen. The paper plots the rise of the top-5 error; the figure here shows the relative error of the
    consumers' outputs (`output_error`), which tells criteria apart long before an answer changes. The drop of accuracy
    and the distance of the logits are with every point in `sensitivity.json`. Ctrl-C ends the measurement, and keeps
    the points that it has.

    Args:
        config: a built-in name, a YAML file or a `Config`; none is the embedded default.
        layers: by name; none takes three spread over the depth.
        criteria: that choose the units, by name; none takes `CRITERIA`.
        sparsities: fractions removed, each in (0, 1); none takes `SPARSITIES`.
        repair: `gram`, least squares on the calibration images as in the paper, or `none`.
        model: your own network instead of the config's.
        images: your own images instead of the config's.
        overrides: `section.key=value` on top of the config.
        out: an empty or new folder; none takes `runs/NAME-sensitivity`.
        reporter: shows progress.
        trust_code: whether code that the config names (`package.module:callable`) may run.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    start = time.perf_counter()
    reporter = reporter or Reporter()
    check_free(out)
    criteria = list(dict.fromkeys(CRITERIA if criteria is None else criteria))
    sparsities = sorted(set(SPARSITIES if sparsities is None else sparsities))
    _check(criteria, sparsities, repair)
    task = task_for_plans([], config, None, model, images, overrides, reporter, trust_code)
    chosen = _choose(task.structure, layers)
    reporter.say(describe(task))
    alone = replace(task.structure, layers=tuple(chosen))  # whatever is not in it stays whole
    points: list[dict[str, Any]] = []
    try:
        for point in _measure(task, alone, criteria, sparsities, repair, reporter):
            points.append(point)
    except KeyboardInterrupt:
        if not points:
            raise
        reporter.say(f"stopped after {len(points)} points")

    folder = new_folder(out, Path("runs") / f"{task.config.name}-sensitivity")
    tree = {
        "config": task.config.name,
        "fingerprint": task.structure.fingerprint,
        "repair": repair,
        "error": "1 - R2 of the consumers' outputs on the search images, mean over consumers",
        "images": {
            "source": task.source,
            "calibration": count_images(task.calibration),
            "search": count_images(task.search),
        },
        "layers": [{"name": layer.name, "width": layer.width} for layer in chosen],
        "criteria": criteria,
        "seed": task.config.seed,
        "versions": package_versions(),
        "seconds": time.perf_counter() - start,
        "points": points,
    }
    write_json(folder / SENSITIVITY_NAME, tree)
    task.save(folder)
    sensitivity_figure(tree, folder / "sensitivity.png")
    reporter.show(sensitivity_table(points))
    return Sensitivity(points, folder)


def _check(criteria: Sequence[str], sparsities: Sequence[float], repair: str) -> None:
    if repair not in get_args(OneLayerRepair):
        known = get_args(OneLayerRepair)
        raise ValueError(f"repair = {repair!r}: only {' or '.join(known)}{did_you_mean(repair, known)}")
    if not criteria or not sparsities:
        raise ValueError("nothing to measure: give at least one criterion and one sparsity")
    for criterion in criteria:
        get_criterion(criterion)
    for sparsity in sparsities:
        if not 0.0 < sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity:g} is outside (0, 1): it is the fraction of a layer that is removed")


def _choose(structure: Structure, names: Sequence[str] | None) -> list[Layer]:
    """In the order of the walk.

    Raises:
        ValueError: no such layer.
    """
    known = {layer.name: layer for layer in structure.layers}
    if names is None:
        return spread_layers(structure, LAYERS)
    if not names:
        raise ValueError(f"no layers to measure: name some of {', '.join(known)}, or leave them out for {LAYERS}")
    for name in names:
        if name not in known:
            reason = structure.uncut.get(name)
            why = f"it is left whole ({reason})" if reason else f"the layers are {', '.join(known)}"
            raise ValueError(f"no layer {name!r} to cut: {why}{did_you_mean(name, known)}")
    return [layer for layer in structure.layers if layer.name in names]


def _measure(
    task: Task,
    structure: Structure,
    criteria: Sequence[str],
    sparsities: Sequence[float],
    repair: OneLayerRepair,
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    """The points, layer by layer and criterion by criterion."""
    pruner = ChannelPruner(task.model, structure, criteria[0], task.calibration, task.config.seed)
    evaluator = CandidateEvaluator(pruner, task.search)
    unseen = collect_moments(task.model, structure, task.search)
    with reporter.bar("measure", len(structure.layers) * len(criteria) * len(sparsities)) as advance:
        for index, layer in enumerate(structure.layers):
            known: dict[tuple[int, ...], dict[str, Any]] = {}  # criteria agree on some selections
            for criterion in criteria:
                order = get_criterion(criterion)(pruner.context, layer)
                for sparsity in sparsities:
                    keep = structure.cut_alone(index, order, sparsity)[index]
                    key = tuple(int(unit) for unit in keep)
                    if key not in known:
                        known[key] = _point(evaluator, index, keep, unseen, repair)
                    advance(f"{layer.name} {criterion} error {known[key]['error']:.3f}")
                    yield {"layer": layer.name, "criterion": criterion, "asked": sparsity, **known[key]}


def _point(
    evaluator: CandidateEvaluator, index: int, keep: NDArray[np.int64], unseen: DenseMoments, repair: OneLayerRepair
) -> dict[str, Any]:
    pruner, structure = evaluator.pruner, evaluator.structure
    selection = [keep if i == index else np.arange(layer.width) for i, layer in enumerate(structure.layers)]
    pruned = shrink(pruner.dense, structure, selection).eval()
    if repair == "gram":
        repair_from_moments(pruned, pruner.dense, structure, selection, pruner.moments)
    widths = np.array([len(units) for units in selection])
    judged = evaluator.judge(pruned, widths)
    return {
        "sparsity": 1.0 - len(keep) / structure.layers[index].width,
        "width": len(keep),
        "error": output_error(pruned, pruner.dense, structure, selection, unseen),
        "reconstruction_loss": judged.reconstruction_loss,
        "accuracy": judged.accuracy,
        "accuracy_drop": evaluator.dense.accuracy - judged.accuracy,
        "flops": judged.flops,
    }


def sensitivity_table(points: Sequence[dict[str, Any]]) -> Table:
    """A section a layer, one row a criterion, one column a sparsity."""
    asked = sorted({point["asked"] for point in points})
    errors = {(point["layer"], point["criterion"], point["asked"]): f"{100 * point['error']:.2f}" for point in points}
    table = Table(
        title="One layer cut, the others whole",
        box=box.SIMPLE_HEAD,
        caption="error of the consumers' outputs (1 − R²) on the search images in per cent, by sparsity",
    )
    table.add_column("", no_wrap=True)
    for sparsity in asked:
        table.add_column(f"{sparsity:g}", justify="right", no_wrap=True)
    for layer in dict.fromkeys(point["layer"] for point in points):
        table.add_row(layer, style="bold")
        for criterion in dict.fromkeys(point["criterion"] for point in points):
            table.add_row(f"  {criterion}", *(errors.get((layer, criterion, s), "") for s in asked))
    return table
