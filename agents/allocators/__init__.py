"""Allocators: choose the sparsity of every layer. A new one is one decorated function."""

from . import ranks, rules, searches  # noqa: F401 – registers its allocators
from .registry import Allocation, Allocator, Widths, allocators, get_allocator, register_allocator

__all__ = [
    "Allocation",
    "Allocator",
    "Widths",
    "allocators",
    "get_allocator",
    "register_allocator",
]
