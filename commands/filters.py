"""`secateur filters`: the filters that look at the image, in the order in which they can be spared."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from ..configs import did_you_mean
from ..networks.inference import Batches, count_images, in_channels_last
from ..networks.world import undisturbed, use_threads
from ..pruners.channels.criteria.registry import Order
from ..pruners.channels.criteria.removal import HARMS, UnitEvaluator, remove_greedily
from ..reports.colour import colour_selectivity, filter_tiles
from ..reports.figures import filters_figure
from ..storage.files import package_versions, write_json
from ..storage.folders import check_free, new_folder
from ..training.inputs import call, leaves, taken
from .resolve import Given
from .session import Session

FILTERS_NAME = "filters.json"
THRESHOLD = 0.5


@dataclass(frozen=True)
class Filters:
    """What a look at the filters leaves behind.

    Attributes:
        summary: what `filters.json` holds.
        folder: where everything was written.
    """

    summary: dict[str, Any]
    folder: Path


@undisturbed()
def filters(
    session: Session | Given = None,
    *,
    layer: str | None = None,
    criterion: str = "car",
    first: int | None = None,
    threshold: float = THRESHOLD,
    out: str | Path | None = None,
) -> Filters:
    """Draw the filters of a convolution of the image in the order of removal, with the colour selectivity of each.

    Abbasi-Asl & Yu (2017) remove AlexNet's first filters one by one, the one first whose removal costs the least
    accuracy, and find that 17 of the first 20 to go are selective for colour and not for shape. The same here for any
    network of colour images: a filter goes by zeroing its output alone, whatever else its channel carries (in a
    residual trunk the others' part stays); all that are left are evaluated anew after every removal, on the calibration
    images. What the network without them is worth is then measured on the search images, which chose nothing.

    Args:
        session: a session, or a config, its name or its file; none is the embedded default.
        layer: a convolution whose input is the image; none takes the first.
        criterion: `car`, by the drop of accuracy (ties by the rise of the loss), or `rar`, by the rise of the loss.
        first: of how many removals the share of colour-selective filters is told; none takes half of the filters.
        threshold: filters above this `colour_selectivity` count as colour-selective.
        out: an empty or new folder; none takes `runs/NAME-filters`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    start = time.perf_counter()
    check_free(out)
    if criterion not in HARMS:
        raise ValueError(f"criterion = {criterion!r}: only {' or '.join(HARMS)}{did_you_mean(criterion, HARMS)}")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold = {threshold:g} is outside [0, 1): colour selectivity runs from 0 to 1")
    session = Session.of(session).beside(spends=False)
    use_threads(session.config.threads)
    name = _choose(session, layer)
    weights = session.model.get_parameter(f"{name}.weight").detach().cpu().double().numpy()
    count = len(weights)
    first = count // 2 if first is None else first
    if not 1 <= first <= count:
        raise ValueError(f"first = {first}: {name} has {count} filters")
    std = session.config.data.std if session.config.data is not None else [1.0, 1.0, 1.0]
    if len(std) != 3:
        raise ValueError(f"data.std has {len(std)} channel, the images have 3: give one a colour")
    removed = _removed_first(session, name, criterion)
    accuracy = _accuracy_left(session, name, removed)

    selectivity = colour_selectivity(weights, std)[removed]
    summary = {
        "config": session.config.name,
        "layer": name,
        "criterion": criterion,
        "images": {
            "source": session.source,
            "calibration": count_images(session.calibration),
            "search": count_images(session.search),
        },
        "std": list(std),
        "dense_search_accuracy": accuracy[0],
        "filters": [
            {
                "filter": int(unit),
                "colour_selectivity": float(selectivity[i]),
                "norm": float(np.linalg.norm(weights[unit])),
                "search_accuracy_without": accuracy[i + 1],
            }
            for i, unit in enumerate(removed)
        ],
        **colour_finding(selectivity, first, threshold),
        "versions": package_versions(),
        "seconds": time.perf_counter() - start,
    }
    folder = new_folder(out, Path("runs") / f"{session.config.name}-filters")
    write_json(folder / FILTERS_NAME, summary)
    session.save(folder)
    filters_figure(filter_tiles(weights, std)[removed], summary, folder / "filters.png")
    session.reporter.say(_finding(summary))
    return Filters(summary, folder)


def colour_finding(selectivity: NDArray[np.float64], first: int, threshold: float) -> dict[str, Any]:
    """Whether the colour-selective filters go first.

    Args:
        selectivity: (filters,) in the order of removal.
        first: how many removals count as the first.
        threshold: above it a filter is colour-selective.

    Returns:
        The shares of colour-selective filters among the first and among all, and Spearman's rank correlation of the
        place in the order with the selectivity: below 0 where colour goes first; none where all are alike.
    """
    colour = selectivity > threshold
    correlation = None
    if np.ptp(selectivity) > 0.0:
        found = spearmanr(np.arange(len(selectivity)), selectivity)
        correlation = {"rho": float(found.statistic), "p": float(found.pvalue)}
    return {
        "threshold": threshold,
        "first": first,
        "colour_selective_first": int(colour[:first].sum()),
        "colour_selective": int(colour.sum()),
        "share_first": float(colour[:first].mean()),
        "share": float(colour.mean()),
        "rank_correlation": correlation,
    }


def _choose(session: Session, name: str | None) -> str:
    """The convolution whose filters are drawn.

    Raises:
        ValueError: it does not look at the image, or the image has no three colours.
    """
    known = _image_convolutions(session)
    if not known:
        raise ValueError("no two-dimensional convolution of this network takes the image itself: nothing to draw")
    if name is not None and name not in known:
        raise ValueError(
            f"layer {name!r} is no convolution of the image: only {', '.join(known)}{did_you_mean(name, known)}"
        )
    name = name or known[0]
    channels = session.model.get_parameter(f"{name}.weight").shape[1]
    if channels != 3:
        raise ValueError(
            f"the filters of {name} take {channels} channel{'s' * (channels != 1)} of the image, and only those of "
            "three colours can be drawn: choose a network of RGB images"
        )
    return name


def _image_convolutions(session: Session) -> list[str]:
    """In the order in which they are called."""
    image = taken(session.search[0][0], slice(1))
    given = leaves(image).values()
    found: dict[str, None] = {}

    def look(name: str, x: torch.Tensor) -> None:
        if any(x.shape == one.shape and torch.equal(x, one) for one in given):
            found[name] = None

    hooks = [
        module.register_forward_pre_hook(lambda _m, args, name=name: look(name, args[0]))
        for name, module in session.model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            call(session.model, image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _evaluator(session: Session, name: str, batches: Batches) -> UnitEvaluator:
    return UnitEvaluator.of_filters(session.model, name, in_channels_last(batches), session.objective)


def _removed_first(session: Session, name: str, criterion: str) -> Order:
    evaluator = _evaluator(session, name, session.calibration)
    count = session.model.get_parameter(f"{name}.weight").shape[0]
    with session.reporter.bar("remove", count - 1) as advance:
        order = remove_greedily(
            evaluator, count, HARMS[criterion], None, lambda gone: advance(f"{gone} of {count} gone")
        )
    return order[::-1].copy()


def _accuracy_left(session: Session, name: str, removed: Order) -> list[float]:
    """(filters + 1,) accuracy on the search images in per cent with the first 0, 1, 2, … filters gone."""
    evaluator = _evaluator(session, name, session.search)
    return [100.0 * evaluator(removed[:gone].tolist())[0] for gone in range(len(removed) + 1)]


def _finding(summary: dict[str, Any]) -> str:
    count, first = len(summary["filters"]), summary["first"]
    correlation = summary["rank_correlation"]
    rank = "" if correlation is None else f"; rank correlation {correlation['rho']:+.2f} (p = {correlation['p']:.2f})"
    return (
        f"{summary['layer']}: of the first {first} filters to go {summary['colour_selective_first']} are "
        f"colour-selective ({100 * summary['share_first']:.0f} %), of all {count} {summary['colour_selective']} "
        f"({100 * summary['share']:.0f} %){rank}"
    )
