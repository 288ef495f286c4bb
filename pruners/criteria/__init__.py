"""Criteria: rank the units inside one layer. A new one is a small module here, and one decorator."""

from . import activations, discrimination, lasso, norms, obs, removal, simple  # noqa: F401 – registers its criteria
from .obs import Elimination, elimination
from .registry import Context, criteria, get_criterion, rank, register_criterion, register_score, scores, select

__all__ = [
    "Context",
    "Elimination",
    "criteria",
    "elimination",
    "get_criterion",
    "rank",
    "register_criterion",
    "register_score",
    "scores",
    "select",
]
