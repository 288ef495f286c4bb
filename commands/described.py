"""What summaries say for whoever reads them later: on how many images, and what a hand would have set."""

from __future__ import annotations

from ..agents import SearchProblem, get_allocator
from ..networks.inference import accuracy, count_images
from ..pruners import RatioPlan
from .session import Session

HAND_SET = ("uniform", "shallow", "deep")  # that look at nothing but shapes (He et al., ECCV 2018, fig. 3)


def image_counts(session: Session) -> dict[str, int]:
    """How many images each split has."""
    splits = {"calibration": session.calibration, "search": session.search, "test": session.test}
    return {name: count_images(batches) for name, batches in splits.items() if batches is not None}


def dense_figures(session: Session) -> dict[str, float | None]:
    """What is lost nothing of: the dense network's measure on search and test images, its costs, all and counted."""
    structure, test = session.structure, session.test
    return {
        "search_accuracy": session.evaluator.dense.accuracy,
        "test_accuracy": None if test is None else accuracy(session.model, test, session.objective),
        **structure.fractions(structure.units),
        **{f"{kind}_count": structure.cost(kind, structure.units) for kind in ("flops", "params")},
    }


def hand_set(session: Session, plan: RatioPlan | None = None) -> dict[str, list[int]]:
    """What ratios set by hand keep of every layer on the session's budget; none where a plan is on another one."""
    try:
        budget = session.budget
        if plan is not None and plan.budget.fractions != budget.fractions:
            return {}
        problem = SearchProblem(budget, session.context)
        return {name: get_allocator(name).allocate(problem).tolist() for name in HAND_SET}
    except ValueError:  # with the layers' bounds as they are now, the plan's budget cannot be kept: there is none
        return {}
