"""`secateur sensitivity`: what the network loses where one layer alone is cut, by criterion and sparsity."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..configs import did_you_mean
from ..configs.registry import admit
from ..networks.inference import count_images
from ..networks.world import undisturbed, use_threads
from ..pruners import METHODS, Context, Kept, Layer, Method, Structure
from ..pruners.repair.gram import DenseMoments, collect_moments, output_error, repair_from_moments
from ..reports.figures import sensitivity_figure
from ..reports.tables import Figures
from ..storage.files import package_versions, write_json
from ..storage.folders import check_free, new_folder
from .resolve import Given
from .session import Session

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


@undisturbed()
def sensitivity(
    session: Session | Given = None,
    *,
    layers: Sequence[str] | None = None,
    criteria: Sequence[str] | None = None,
    sparsities: Sequence[float] | None = None,
    repair: OneLayerRepair = "gram",
    out: str | Path | None = None,
) -> Sensitivity:
    """Cut one layer at a time, the others whole, and measure on the search images what is lost.

    The first figure of channel pruning (He, Zhang, Sun, ICCV 2017, fig. 4) for any network and criterion: units are
    chosen and the consumers repaired on the calibration images, everything is measured on the search images, which the
    repair has not seen. The paper plots the rise of the top-5 error; the figure here shows the relative error of the
    consumers' outputs (`output_error`), which tells criteria apart long before an answer changes. The drop of accuracy
    and the distance of the logits are with every point in `sensitivity.json`. Ctrl-C ends the measurement, and keeps
    the points that it has.

    Args:
        session: a session, or a config, its name or its file; none is the embedded default.
        layers: by name; none takes three spread over the depth.
        criteria: that choose the units, by name; none takes `CRITERIA`, or of another method its own.
        sparsities: fractions removed, each in (0, 1); none takes `SPARSITIES`.
        repair: `gram`, least squares on the calibration images as in the paper, or `none`.
        out: an empty or new folder; none takes `runs/NAME-sensitivity`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    start = time.perf_counter()
    check_free(out)
    session = Session.of(session).beside(spends=False)
    use_threads(session.config.threads)
    reporter, method = session.reporter, METHODS[session.config.method]
    if criteria is None:
        criteria = CRITERIA if method.name == "channels" else (method.criterion,)
    criteria = list(dict.fromkeys(criteria))
    for criterion in criteria:
        admit({"criteria": criterion}, trust_code=session.trust_code)
    sparsities = sorted(set(SPARSITIES if sparsities is None else sparsities))
    _check(method, criteria, sparsities, repair)
    chosen = _choose(session.structure, layers)
    reporter.say(session.describe())
    points: list[dict[str, Any]] = []
    try:
        for point in _measure(session, chosen, criteria, sparsities, repair):
            points.append(point)
    except KeyboardInterrupt:
        if not points:
            raise
        reporter.say(f"stopped after {len(points)} points")

    folder = new_folder(out, Path("runs") / f"{session.config.name}-sensitivity")
    tree = {
        "config": session.config.name,
        "fingerprint": session.structure.fingerprint,
        "repair": repair,
        "error": "1 - R2 of the consumers' outputs on the search images, mean over consumers",
        "images": {
            "source": session.source,
            "calibration": count_images(session.calibration),
            "search": count_images(session.search),
        },
        "method": session.config.method,
        "unit": method.unit,
        "layers": [{"name": layer.name, "units": layer.units} for layer in chosen],
        "criteria": criteria,
        "seed": session.config.seed,
        "versions": package_versions(),
        "seconds": time.perf_counter() - start,
        "points": points,
    }
    write_json(folder / SENSITIVITY_NAME, tree)
    session.save(folder)
    sensitivity_figure(tree, folder / "sensitivity.png")
    reporter.show(sensitivity_table(points))
    return Sensitivity(points, folder)


def _check(method: Method, criteria: Sequence[str], sparsities: Sequence[float], repair: str) -> None:
    if repair not in get_args(OneLayerRepair):
        known = get_args(OneLayerRepair)
        raise ValueError(f"repair = {repair!r}: only {' or '.join(known)}{did_you_mean(repair, known)}")
    if not criteria or not sparsities:
        raise ValueError("nothing to measure: give at least one criterion and one sparsity")
    for criterion in criteria:
        method.check_criterion(criterion)
    for sparsity in sparsities:
        if not 0.0 < sparsity < 1.0:
            raise ValueError(f"sparsity {sparsity:g} is outside (0, 1): it is the fraction of a layer that is removed")


def _choose(structure: Structure, names: Sequence[str] | None) -> list[Layer]:
    """In the order of the walk.

    Raises:
        ValueError: no such layer.
    """
    known = {layer.name: layer for layer in structure.layers if not layer.like}
    if names is None:  # the middle ones of as many equal stretches of the walk
        layers = [*known.values()]
        return [layers[i] for i in sorted({(2 * k + 1) * len(layers) // (2 * LAYERS) for k in range(LAYERS)})]
    if not names:
        raise ValueError(f"no layers to measure: name some of {', '.join(known)}, or leave them out for {LAYERS}")
    for name in names:
        if name not in known:
            if like := next((layer.like for layer in structure.layers if layer.name == name), ""):
                raise ValueError(f"layer {name!r} loses no weights to measure: its sensitivity is that of {like!r}")
            reason = structure.ignored.get(name)
            why = f"it is left whole ({reason})" if reason else f"the layers are {', '.join(known)}"
            raise ValueError(f"no layer {name!r} to cut: {why}{did_you_mean(name, known)}")
    return [layer for layer in structure.layers if layer.name in names]


def _measure(
    session: Session,
    layers: Sequence[Layer],
    criteria: Sequence[str],
    sparsities: Sequence[float],
    repair: OneLayerRepair,
) -> Iterator[dict[str, Any]]:
    """The points, layer by layer and criterion by criterion."""
    structure, context = session.structure, session.context
    unseen = collect_moments(session.model, [name for layer in layers for name in layer.consumers], session.search)
    seed = session.config.seed
    contexts = {criterion: replace(context, criterion=criterion, seed=seed) for criterion in criteria}
    with session.reporter.bar("measure", len(layers) * len(criteria) * len(sparsities)) as advance:
        for layer in layers:
            index = structure.index(layer.name)
            for criterion in criteria:
                for sparsity in sparsities:
                    kept = structure.units.copy()
                    kept[index] = max(1, structure.snap(index, (1.0 - sparsity) * layer.units))
                    point = _point(session, contexts[criterion], kept, index, unseen, repair)
                    advance(f"{layer.name} {criterion} error {point['error']:.3f}")
                    yield {"layer": layer.name, "criterion": criterion, "asked": sparsity, **point}


def _point(
    session: Session, context: Context, kept: Kept, index: int, unseen: DenseMoments, repair: OneLayerRepair
) -> dict[str, Any]:
    compressed = context.method.apply(context, kept)
    if repair == "gram":
        repair_from_moments(compressed, context.model, session.context.moments)
    measured = session.evaluator.measure(compressed.model, kept)
    units = context.structure.layers[index].units
    return {
        "sparsity": 1.0 - int(kept[index]) / units,
        "kept": int(kept[index]),
        "error": output_error(compressed, context.model, unseen),
        "reconstruction_loss": measured.reconstruction_loss,
        "accuracy": measured.accuracy,
        "accuracy_drop": session.evaluator.dense.accuracy - measured.accuracy,
        "flops": measured.flops,
    }


def sensitivity_table(points: Sequence[dict[str, Any]]) -> Figures:
    """A section a layer, one row a criterion, one column a sparsity."""
    asked = sorted({point["asked"] for point in points})
    errors = {(point["layer"], point["criterion"], point["asked"]): f"{100 * point['error']:.2f}" for point in points}
    rows: list[list[str]] = []
    for layer in dict.fromkeys(point["layer"] for point in points):
        rows.append([layer])
        for criterion in dict.fromkeys(point["criterion"] for point in points):
            rows.append([f"  {criterion}", *(errors.get((layer, criterion, s), "") for s in asked)])
    return Figures(
        "One layer cut, the others whole",
        "error of the consumers' outputs (1 − R²) on the search images in per cent, by sparsity",
        ("", *(f"{sparsity:g}" for sparsity in asked)),
        rows,
    )
