"""How many devices a stated share of colluders stands for, and how many a sum needs because of it.

Two lines of arithmetic that the configuration's checks, the secure sum and its graphs must agree on to the last digit
(docs/protocol.md, "Cohorts").
"""

import math

__all__ = ["effective_cohort", "of_members"]

ROUNDING = 2.0**-20
"""Taken from a product before it is rounded up: 0.07 x 100 is 7, not 8."""


def of_members(fraction: float, members: int) -> int:
    """How many of ``members`` a fraction stands for, rounded up: colluders, or drop-outs.

    Example:
        >>> of_members(0.07, 100), of_members(0.1, 3), of_members(0.0, 1000)
        (7, 1, 0)
    """
    return math.ceil(fraction * members - ROUNDING)


def effective_cohort(min_cohort: int, corrupt_fraction: float, members: int) -> int:
    """The fewest devices, each of its own organisation, that a block is opened for: two of them honest at least.

    Example:
        >>> effective_cohort(3, 0.1, 10), effective_cohort(3, 0.1, 100)
        (3, 12)
    """
    return max(min_cohort, of_members(corrupt_fraction, members) + 2)
