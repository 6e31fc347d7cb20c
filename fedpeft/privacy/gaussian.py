"""The exact privacy profile of a Gaussian mechanism (Balle and Wang 2018, Theorem 8), computed from above.

With s = sensitivity / standard deviation,

    delta(epsilon) = Phi(s/2 - epsilon/s) - e^epsilon Phi(-s/2 - epsilon/s)

which falls in epsilon. Both terms are taken with a bound on what float64 rounds, so the epsilon returned is never below
the exact one.
"""

import math

__all__ = ["gaussian_delta", "gaussian_epsilon"]

ROUNDING = 2.0**-50
"""Of either term, for each unit of the squares that it is computed from: erfc and exp are within 2^-51 of theirs."""


def gaussian_delta(s: float, epsilon: float) -> float:
    """At least delta(epsilon).

    Args:
        s: > 0, sensitivity over standard deviation.
        epsilon: >= 0.
    """
    near, far = (epsilon / s - s / 2) / math.sqrt(2), (epsilon / s + s / 2) / math.sqrt(2)
    first = 0.5 * math.erfc(near)
    # e^epsilon erfc(far) = exp(-near^2) erfcx(far): e^epsilon alone would overflow.
    second = 0.5 * math.exp(-near * near) * _scaled_erfc(far)
    return first - second + ROUNDING * (1 + near * near + far * far) * (first + second)


def gaussian_epsilon(s: float, delta: float) -> float:
    """The least epsilon >= 0 with delta(epsilon) <= ``delta``, to ten digits, rounded up; infinite if there is none.

    Args:
        s: >= 0; several mechanisms, one after the other, have the root of the sum of their squares.
        delta: 0 < delta < 1.

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377
    """
    if s == 0 or gaussian_delta(s, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(s, high) > delta:
        high *= 2
        if high > 1e12:
            return math.inf
    low = 0.0
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(s, middle) <= delta else (middle, high)
    return high


def _scaled_erfc(x: float) -> float:
    """At most exp(x^2) erfc(x), and within 10^-6 of it."""
    if x < 25:
        return math.exp(x * x) * math.erfc(x)
    return 2 / math.sqrt(math.pi) / (x + math.sqrt(x * x + 2))  # Abramowitz and Stegun 7.1.13
