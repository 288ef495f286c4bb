"""Criteria: rank the units inside one layer. A new one is a small module here, and one decorator."""

from . import activations, discrimination, lasso, norms, obs, removal, simple  # noqa: F401 – registers its criteria
from .norms import squared_norms
from .obs import Elimination, elimination
from .registry import CRITERIA, check_criterion, filters, rank, register_criterion, register_score, scores, select
from .simple import scale_statistics

__all__ = [
    "CRITERIA",
    "Elimination",
    "check_criterion",
    "elimination",
    "filters",
    "rank",
    "register_criterion",
    "register_score",
    "scale_statistics",
    "scores",
    "select",
    "squared_norms",
]
