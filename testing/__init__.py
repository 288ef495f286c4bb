"""Checks for plug-ins: whether a method, an allocator or a criterion keeps the rules that everything else relies on.

For the tests of whoever writes one; the package's own are checked by the same functions:

    from secateur.testing import check_method

    def test_my_method():
        check_method("mine")

Every check is a plain function. It raises AssertionError with the rule that is broken, where, and by what.
"""

from .allocators import ALLOCATOR_RULES, check_allocator
from .criteria import CRITERION_RULES, check_criterion, check_weight_scores
from .methods import METHOD_RULES, check_method
from .toys import toy_context, toy_images, toy_networks

__all__ = [
    "ALLOCATOR_RULES",
    "CRITERION_RULES",
    "METHOD_RULES",
    "check_allocator",
    "check_criterion",
    "check_method",
    "check_weight_scores",
    "toy_context",
    "toy_images",
    "toy_networks",
]
