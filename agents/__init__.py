"""Who chooses the ratios: the learner, rules, rankings, searches."""

from .allocators import Allocation, Allocator, allocators, get_allocator, register_allocator
from .learner import ALGORITHMS, Episode, Learner

__all__ = [
    "ALGORITHMS",
    "Allocation",
    "Allocator",
    "Episode",
    "Learner",
    "allocators",
    "get_allocator",
    "register_allocator",
]
