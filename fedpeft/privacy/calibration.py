"""The least noise that keeps within a budget, for any accountant."""

import math
from collections.abc import Callable

__all__ = ["least_noise"]


def least_noise(fits: Callable[[float], bool], *, start: float, limit: float, digits: int) -> float | None:
    """The least noise multiplier that fits, rounded up to so many digits; None when none up to ``limit`` does.

    Args:
        fits: whether a noise multiplier keeps within the budget; once it does, all larger ones do.
        start: > 0; a lower bound of the search, and the answer is at least half of it.
        limit: the largest that is tried.
        digits: significant ones, >= 1.
    """
    high = start
    while not fits(high):
        high *= 2
        if high > limit:
            return None
    low = high / 2
    while high / low > 1 + 0.05 * 10.0**-digits:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    places = digits - 1 - math.floor(math.log10(high))
    rounded = math.ceil(high * 10**places) / 10**places
    return rounded if fits(rounded) else high
