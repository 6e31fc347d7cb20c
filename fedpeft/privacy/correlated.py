"""Correlated noise over the steps of one device: banded Toeplitz matrix factorization (DP-FTRL).

Independent noise on every step adds up in the model; noise of which a later step takes back a part adds up less. The
steps' noise is w = C^-1 z, z independent and C lower triangular with b bands (Choquette-Choo et al. 2023), so that the
model, a sum of steps (``workload``), has A C^-1 z in it. C is the square root of A cut after b bands (Kalinin and
Lampert 2024), whose first column is known in closed form.

What it costs. The units of a device are in b groups; step t takes from group t mod b alone, by Poisson sampling. So
someone's steps are b apart, their columns of C share no row, and everything that is released of a run, C applied to it,
is a sequence of Poisson-sampled Gaussian mechanisms, one in every b steps: DP-SGD over ceil(T / b) steps at b times
the sampling rate, whose sensitivity is C's column norm (the same paper, Theorem 4). ``turns`` counts them; the noise
multiplier is that of z over column norm times clip norm, and everything that accounts for DP-SGD accounts for this.

Pure numpy; no noise is drawn here (``fedpeft.privacy.noise_stream``).
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BANDS", "coefficients", "column_norm", "inverse", "root_mean_square", "turns", "workload"]

Floats = npt.NDArray[np.float64]

BANDS = (1, 2, 4, 6, 8, 12, 16)
"""Widths that are tried; 1 is independent noise. A device keeps one row of noise less than its width."""

HORIZON = 2048
"""Steps of a longer run that errors are compared over."""


def workload(steps: int, momentum: float) -> Floats:
    """First column of A, (T,): what a unit of the first step's gradient has moved the model by after each step.

    Example:
        >>> workload(3, 0.5)
        array([1.  , 1.5 , 1.75])
    """
    return np.cumsum(momentum ** np.arange(steps, dtype=np.float64))


@lru_cache(maxsize=64)
def coefficients(bands: int, momentum: float = 0.0) -> tuple[float, ...]:
    """First column of C, without its zeros: c_0 = 1, ..., c_(b-1), all above zero.

    Args:
        bands: b, >= 1.
        momentum: of the optimizer that steps are handed to, in [0, 1).

    Example:
        >>> coefficients(3)
        (1.0, 0.5, 0.375)
    """
    root = np.ones(bands)  # of 1 / (1 - x), the prefix sum
    for j in range(1, bands):
        root[j] = root[j - 1] * (2 * j - 1) / (2 * j)
    found = np.convolve(root, root * momentum ** np.arange(bands, dtype=np.float64))[:bands]
    return tuple(float(c) for c in found)


def column_norm(first_column: tuple[float, ...]) -> float:
    """L2 norm of a whole column of C, rounded up: by how much a unit moves C applied to the steps, over its norm."""
    return math.sqrt(math.fsum(c * c for c in first_column)) * (1 + 2.0**-50)


def inverse(first_column: tuple[float, ...], steps: int) -> Floats:
    """First column of C^-1, (T,)."""
    behind = np.asarray(first_column[1:])
    found = np.zeros(steps)
    for t in range(steps):
        near = found[max(0, t - len(behind)) : t][::-1]
        found[t] = (t == 0) - float(behind[: len(near)] @ near)
    return found


def root_mean_square(first_column: tuple[float, ...], steps: int, momentum: float) -> float:
    """Of the noise in the model over all steps, for z of unit variance: sqrt(||A C^-1||_F^2 / T)."""
    within = min(steps, HORIZON)
    response = np.convolve(workload(within, momentum), inverse(first_column, within))[:within]
    return math.sqrt(float(np.cumsum(response**2).mean()))


def turns(first: int, end: int, bands: int) -> int:
    """How many turns begin in the steps ``first`` .. ``end`` - 1: over a run from step 0, the most steps of any group.

    Example:
        >>> turns(0, 5, 4), turns(5, 8, 4), turns(0, 8, 4)
        (2, 0, 2)
    """
    return -(-end // bands) - (-(-first // bands))
