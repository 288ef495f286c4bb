"""A session in a line, for a person."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from ..networks.inference import count_images

if TYPE_CHECKING:
    from ..envs import CandidateEvaluator
    from .session import Session


def warned(evaluator: CandidateEvaluator) -> CandidateEvaluator:
    """The evaluator, with a RuntimeWarning where the dense network does no better than naming the commonest class.

    Up to two standard errors count as no better: 12 % of a thousand images in ten equal classes.
    """
    accuracy, labels = evaluator.dense.accuracy, torch.cat([labels for _, labels in evaluator.search])
    share = float(labels.bincount().max()) / len(labels)
    if accuracy <= 100.0 * (share + 2.0 * (share * (1.0 - share) / len(labels)) ** 0.5):
        warnings.warn(
            f"the dense network is right on {accuracy:.1f} % of the search images, no better than chance "
            f"({100 * share:.1f} % are of one class): check its weights, the order of the classes, and the images' "
            "mean and std",
            RuntimeWarning,
            stacklevel=2,
        )
    return evaluator


def describe(session: Session) -> str:
    """Its name, method, layers, FLOPs, budget and images."""
    structure, budget = session.structure, session.budget
    flops = structure.cost("flops", structure.units)
    splits = {"calibration": session.calibration, "search": session.search, "test": session.test}
    images = ", ".join(f"{count_images(batches)} {name}" for name, batches in splits.items() if batches is not None)
    told = " (dense: {predicted_ms:.2f} ms by the table, {measured_ms:.2f} ms measured)"
    latency = told.format(**session.dense_latency) if session.dense_latency else ""
    return (
        f"{session.config.name}: {structure.method}, {len(structure.layers)} layers, {flops / 1e6:.1f} M FLOPs, "
        f"budget {100 * budget.fraction:g} % of the {budget.kind}{latency}; images: {images}"
    )
