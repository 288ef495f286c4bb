"""Criteria: rank the units inside one layer. A new one is a small module here, and one decorator."""

from . import norms  # noqa: F401 – registers its criteria
from .registry import Context, criteria, get_criterion, rank, register_criterion, register_score, select

__all__ = [
    "Context",
    "criteria",
    "get_criterion",
    "rank",
    "register_criterion",
    "register_score",
    "select",
]
