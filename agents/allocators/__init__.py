"""Allocators: choose how much of every layer is kept. A new one is one decorated function."""

from . import learnt, ranks, rules, searches  # noqa: F401 – registers its allocators
from .registry import ALLOCATORS, Allocator, SearchProblem, get_allocator, register_allocator

__all__ = [
    "ALLOCATORS",
    "Allocator",
    "SearchProblem",
    "get_allocator",
    "register_allocator",
]
