"""Who chooses the ratios: rules, rankings, searches; and the learner, whose library takes a second to import."""

from .allocators import ALLOCATORS, Allocator, SearchProblem, get_allocator, register_allocator

__all__ = [
    "ALLOCATORS",
    "Allocator",
    "SearchProblem",
    "get_allocator",
    "register_allocator",
]
