"""The best plans of a search, measured again with the final repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..envs import Evaluation
from ..pruners import Kept
from .session import Session


@dataclass(frozen=True)
class Reranked:
    """A plan of a search that was measured again, repaired as a finished plan is.

    Attributes:
        kept: (layers,) units kept.
        evaluation: on the search images.
        quality: of it.
    """

    kept: Kept
    evaluation: Evaluation
    quality: float


def rerank(session: Session, qualities: Mapping[tuple[int, ...], float]) -> list[Reranked]:
    """The best plans of a search, and its first, measured again on the search images with the final repair, best first.

    A candidate's quick repair ranks plans well but not perfectly, and the best of many is partly luck; the first is
    where the search began, and tells what it gained.

    Args:
        session: `agent.rerank` of its config says how many of the best.
        qualities: of the search's candidates, by what they keep, in the order evaluated.
    """
    best = sorted(qualities, key=lambda kept: -qualities[kept])[: session.config.agent.rerank]
    chosen = list(dict.fromkeys([*best, *list(qualities)[:1]]))
    reranked = []
    with session.reporter.bar("re-rank", len(chosen)) as advance:
        for key in chosen:
            kept = np.array(key, dtype=np.int64)
            evaluation = session.evaluator.measure(session.compress(kept), kept)
            reranked.append(Reranked(kept, evaluation, session.weights.quality(evaluation)))
            advance(f"score {evaluation.accuracy:.1f}%")
    return sorted(reranked, key=lambda plan: -plan.quality)
