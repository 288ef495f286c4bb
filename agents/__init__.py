"""Who chooses the ratios: the learner, rules, rankings, searches."""

from .allocators import ALLOCATORS, Allocator, SearchProblem, get_allocator, register_allocator
from .learner import ALGORITHMS, Episode, Learner

__all__ = [
    "ALGORITHMS",
    "ALLOCATORS",
    "Allocator",
    "Episode",
    "Learner",
    "SearchProblem",
    "get_allocator",
    "register_allocator",
]
