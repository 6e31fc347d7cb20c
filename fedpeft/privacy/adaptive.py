"""Adaptive clipping (Andrew, Thakkar, McMahan and Ramaswamy 2021): the clip norm follows a quantile of the norms.

With its contribution each device adds one bit, whether its norm was within the clip norm. The bit is one more
coordinate of the same sum: +w or -w, under the same noise. So a client moves the sum by at most
S = sqrt(C^2 + w^2), the noise is z S, and z is all that the accountant needs. In the paper's terms, with
sigma_b = z S / (2 w) the noise on the count of bits (each of sensitivity 1/2) and z_delta = z S / C that on the deltas,

    z^-2 = z_delta^-2 + (2 sigma_b)^-2,

its Theorem 1. w has few binary digits, so it lies on the grid exactly. After a round,

    C <- C exp(-rate (share - quantile)),

with the noisy share of bits that were set: computed from a release, so it costs nothing more.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId

__all__ = ["CLIP_BIT", "bit_noise", "bit_vector", "bit_weight", "next_clip_norm"]

CLIP_BIT = BlockId("clip-bit")
"""The block of the sum that holds the bits: one coordinate, owned by everybody."""

WANTED_NOISE = 0.05
"""Standard deviation of the noise on the share of bits, as in the paper (sigma_b = n / 20)."""

MOST_WEIGHT = 0.25
"""Of C: the bit makes the noise on the deltas at most 3.1 % larger, however few devices there are."""


DIGITS = 4
"""The bit's weight is rounded down to so many: an eighth at most."""


def bit_weight(l2_clip_norm: float, noise_multiplier: float, devices: int) -> float:
    """w, the bit's half width in the units of the contribution: at most a quarter of C, of four binary digits.

    Args:
        l2_clip_norm: C of this round.
        noise_multiplier: z.
        devices: n, that are asked.

    Example:
        >>> bit_weight(1.0, 1.0, 100)
        0.09375
    """
    wanted = noise_multiplier * l2_clip_norm / (2 * WANTED_NOISE * devices)
    mantissa, exponent = math.frexp(min(wanted, MOST_WEIGHT * l2_clip_norm))
    return math.ldexp(math.floor(mantissa * 2**DIGITS), exponent - DIGITS)


def bit_noise(weight: float, noise_multiplier: float, l2_clip_norm: float, devices: int) -> float:
    """Standard deviation of the noise on the share of bits that are set, at the least noise that is promised."""
    return noise_multiplier * math.hypot(l2_clip_norm, weight) / (2 * weight * devices)


def bit_vector(within: bool, weight: float) -> npt.NDArray[np.float32]:
    """One device's bit, (1,) float32."""
    return np.array([weight if within else -weight], np.float32)


def next_clip_norm(
    l2_clip_norm: float, sums: Mapping[BlockId, float], *, weight: float, survivors: int, quantile: float, rate: float
) -> float:
    """The clip norm of the next round; the same one if the bits were not opened.

    Args:
        l2_clip_norm: of this round.
        sums: of the bits, under ``CLIP_BIT``, if the sum was opened.
        weight: w of this round.
        survivors: devices in the sum; who took part is not hidden.
        quantile: share of the devices that should not be clipped, in (0, 1).
        rate: how fast, > 0: the norm changes by at most a factor e^rate.

    Example:
        >>> round(next_clip_norm(1.0, {CLIP_BIT: 10 * 0.25}, weight=0.25, survivors=10, quantile=0.5, rate=0.2), 4)
        0.9048
    """
    if CLIP_BIT not in sums or survivors < 1:
        return l2_clip_norm
    # Noise may carry the share out of [0, 1]: no share of anything.
    share = min(1.0, max(0.0, 0.5 + sums[CLIP_BIT] / (2 * weight * survivors)))
    return l2_clip_norm * math.exp(-rate * (share - quantile))
