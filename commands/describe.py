"""A session in a line, for a person."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ..networks.inference import count_images
from ..pruners.costs.latency import measure_latency

if TYPE_CHECKING:
    from ..envs import CandidateEvaluator
    from .session import Session


def dense_latency(session: Session) -> dict[str, float]:
    """Of the dense network, measured; see `Session.dense_latency`."""
    structure = session.structure
    if "latency" not in structure.costs:
        return {}
    measured = measure_latency({"dense": session.model}, session.input_shape, session.config.latency)["dense"]
    return {"predicted_ms": structure.cost("latency", structure.units) / 1e6, "measured_ms": measured}


def warned(evaluator: CandidateEvaluator) -> CandidateEvaluator:
    """The evaluator, with a RuntimeWarning of what makes a search on it pointless."""
    if evaluator.warning is not None:
        warnings.warn(evaluator.warning, RuntimeWarning, stacklevel=2)
    return evaluator


def describe(session: Session) -> str:
    """Its name, method, layers, FLOPs, budget and images."""
    structure, budget = session.structure, session.budget
    flops = structure.cost("flops", structure.units)
    splits = {"calibration": session.calibration, "search": session.search, "test": session.test}
    images = ", ".join(f"{count_images(batches)} {name}" for name, batches in splits.items() if batches is not None)
    asked = " and ".join(f"{100 * part:g} % of the {kind}" for kind, part in budget.fractions.items())
    told = " (dense: {predicted_ms:.2f} ms by the table, {measured_ms:.2f} ms measured)"
    latency = told.format(**session.dense_latency) if session.dense_latency else ""
    return (
        f"{session.config.name}: {structure.method}, {len(structure.layers)} layers, {flops / 1e6:.1f} M FLOPs, "
        f"budget {asked}{latency}; images: {images}"
    )
