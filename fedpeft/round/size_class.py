"""A device's public size: its number of examples to a factor of two, and nothing finer anywhere.

An exact count in any sum is solved from the sums of cohorts that differ, by linear algebra, in about as many rounds as
there are devices (docs/adr/0012-silence-and-size-classes.md). So no sum holds a count: a device declares the power of
two nearest to its own once per run, in its signed advert, and every weight and denominator is made of those.
"""

import math

from fedpeft.config.model import Aggregate
from fedpeft.ids import SIZELESS, SizeClass

__all__ = [
    "LARGEST",
    "declared_class",
    "discounted",
    "lower_end",
    "share_of",
    "size_class",
    "upper_end",
    "weight_share",
]

LARGEST = SizeClass(63)
"""The largest class that an advert may declare."""


def size_class(examples: int) -> SizeClass:
    """k of the power of two 2^k nearest to this number in the logarithm; 0 for none.

    Args:
        examples: at least 0.

    Example:
        >>> [size_class(n) for n in (0, 1, 2, 3, 5, 6, 100, 1000)]
        [0, 0, 1, 2, 2, 3, 7, 10]
    """
    # k = round(log2 n) exactly when 2^(2k - 1) <= n^2 < 2^(2k + 1), in integers.
    return min(LARGEST, SizeClass((max(1, examples) ** 2).bit_length() // 2))


def lower_end(declared: SizeClass) -> float:
    """No device of this class has fewer examples, unless it has none: 2^(k - 1/2), at least 1."""
    return max(1.0, math.pow(2.0, declared - 0.5))


def upper_end(declared: SizeClass) -> float:
    """No device of this class has as many: 2^(k + 1/2), above 1."""
    return math.pow(2.0, declared + 0.5)


def share_of(declared: SizeClass, max_weight: int) -> float:
    """A device's weight beside the largest that the run gives, in (0, 1]: a power of two, so exact in any float.

    Args:
        declared: its class; above that of ``max_weight`` it counts as that.
        max_weight: examples at which a device's weight stops growing.

    Example:
        >>> share_of(SizeClass(7), 10_000), share_of(SizeClass(20), 10_000)
        (0.015625, 1.0)
    """
    largest = size_class(max_weight)
    return math.ldexp(1.0, min(max(0, declared), largest) - largest)


def declared_class(aggregate: Aggregate, size: SizeClass) -> SizeClass:
    """What a device of this size declares: no more than its weight needs, and 0 where all weigh alike."""
    return min(size, size_class(aggregate.max_weight)) if aggregate.weight == "examples" else SIZELESS


def discounted(declared: SizeClass, staleness: int) -> SizeClass:
    """What a device declares for work that is so many rounds late: 1 / sqrt(1 + staleness) of its weight, as a class.

    That is the nearest power of two in the logarithm, so exact like every weight: 1/2 for one to six rounds, 1/4 for
    seven to thirty. The least class has no smaller one.

    Example:
        >>> [discounted(SizeClass(7), late) for late in (0, 1, 6, 7, 30, 31)]
        [7, 6, 6, 5, 5, 4]
    """
    # e = floor(log2(1 + s) / 2 + 1/2) exactly when 2^(2e - 1) <= 1 + s < 2^(2e + 1).
    return SizeClass(max(0, declared - (1 + staleness).bit_length() // 2))


def weight_share(aggregate: Aggregate, declared: SizeClass) -> float:
    """What a device of this class multiplies its deltas by under this [aggregate]; both sides compute it."""
    return share_of(declared, aggregate.max_weight) if aggregate.weight == "examples" else 1.0
