"""The discrete Gaussian on the integers, P[x] proportional to exp(-x^2 / 2 sigma^2), from cryptographic bytes.

Never a rounded float: rounded floats leak through their gaps (Mironov 2012). The magnitude is cut at bit k, so that
sigma = sigma_0 * 2^k with sigma_0 < 128:

    j ~ exp(-j^2 / 2 sigma_0^2), j >= 0     from a table of 128-bit cumulative probabilities
    u uniform on 0 .. 2^k - 1
    x = 2^k j + u, kept with probability exp(-u (u + 2^(k+1) j) / 2 sigma^2), else drawn again
    a fair sign; -0 is drawn again

which is exact (Canonne, Kamath and Steinke 2020, Karney 2016 for the idea of proposing and rejecting). What a
computer adds to that is bounded by ``RELATIVE_ERROR``: the table is exact to 2^-128 and its mass ends where less
than 2^-128 is left; comparisons draw further bits only when the first ones do not decide. Constant time is not
claimed: how often a draw is repeated depends on values that are noise, never on an input.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy

__all__ = ["MAX_SIGMA", "RELATIVE_ERROR", "discrete_gaussian"]

MAX_SIGMA = 2.0**24
"""2^k j stays below 2^29 and the exponent's numerator below 2^49: exact in a float64."""

RELATIVE_ERROR = 2.0**-50
"""Every probability above 2^-78 is within this factor of the stated one: the float64 rounding of the exponent and of
exp is at most 3 * 2^-53 where 1/2 < exp <= 1, the normalisation doubles it, and the table is exact to 2^-128. What is
less probable than 2^-78 never comes up: 10^12 draws see it with probability 10^-11."""

TABLE_SIGMA = 128.0
TABLE_BITS = 128
GUIDE_BITS = 16
PIECE = 1 << 16
"""Drawn at once: the temporaries stay in the second-level cache."""

Integers = npt.NDArray[np.int64]
Draws = npt.NDArray[np.int32]


def discrete_gaussian(sigma: float, size: int, entropy: Entropy) -> Draws:
    """Independent draws.

    Args:
        sigma: the parameter; the standard deviation too, up to 1e-7 from sigma = 1 on. 0 < sigma <= 2^24.
        size: how many.
        entropy: cryptographic bytes; 8 to 9 a draw.

    Returns:
        (size,) int32.

    Guarantees:
        The probabilities are those of the discrete Gaussian:
        tests/privacy/test_discrete_gaussian.py::test_the_probabilities_are_those_of_the_discrete_gaussian.
        Variance and tails are the closed form's: test_the_variance_is_the_closed_form and
        test_the_tails_are_the_closed_form.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise ValueError(f"Expected 0 < sigma <= 2^24, found sigma={sigma}.")
    table = _table(sigma)
    out = np.empty(size, np.int32)
    opened = [_propose_all(table, out[start : start + PIECE], entropy, start) for start in range(0, size, PIECE)]
    if not opened:
        return out
    places, *bits = (np.concatenate(parts) for parts in zip(*opened, strict=True))
    while len(places):
        drawn, kept = _propose(table, (bits[0], bits[1], bits[2]), entropy)
        out[places] = drawn
        places = places[~kept]
        bits = list(_bytes(len(places), entropy))
    return out


@dataclass(frozen=True, slots=True)
class _Table:
    """The distribution of j, and how it is stretched to sigma.

    Args:
        shift: k.
        scale: 1 / (2 sigma^2).
        high, low: cumulative probabilities of j, P[J <= j] * 2^128, as two 64-bit halves; the last is left out.
        guide: for each value of the first 16 bits the j that they decide, or UNDECIDED.
        quick: the same with j in the upper half, and in the lower half below what 16 bits of the keeping a proposal
            with this j is kept whatever u is; 0 where nothing is decided, and for j = 0, where the sign matters.
    """

    shift: int
    scale: float
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    guide: npt.NDArray[np.uint16]
    quick: npt.NDArray[np.uint32]


UNDECIDED = np.iinfo(np.uint16).max


@lru_cache(maxsize=8)
def _table(sigma: float) -> _Table:
    shift = max(0, math.frexp(sigma / TABLE_SIGMA)[1])
    coarse = math.ldexp(sigma, -shift)
    last = math.ceil(coarse * math.sqrt(2 * math.log(2) * (TABLE_BITS + 8))) + 1
    with localcontext() as context:
        context.prec = 60
        twice = 2 * Decimal(coarse) ** 2
        weights = [(-(Decimal(j) ** 2) / twice).exp() for j in range(last)]
        total, running, cumulative = sum(weights, Decimal(0)), Decimal(0), []
        for weight in weights[:-1]:
            running += weight
            cumulative.append(min(int(running / total * (1 << TABLE_BITS)), (1 << TABLE_BITS) - 1))
    high = np.array([value >> 64 for value in cumulative], np.uint64)
    low = np.array([value & (2**64 - 1) for value in cumulative], np.uint64)
    edges = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    first = np.searchsorted(high, edges, side="right")
    final = np.searchsorted(high, edges | np.uint64((1 << (64 - GUIDE_BITS)) - 1), side="right")
    # Safe: a bucket that holds no threshold, nor touches one, has a single j.
    touched = np.isin(np.arange(1 << GUIDE_BITS), high >> np.uint64(64 - GUIDE_BITS))
    guide = np.where((first == final) & ~touched, first, UNDECIDED).astype(np.uint16)
    j = np.arange(last, dtype=np.float64)
    # The largest exponent that j allows; a shift of 0 has u = 0 and keeps everything.
    worst = (2.0**shift - 1) * (2.0**shift - 1 + j * 2.0 ** (shift + 1)) * (0.5 / (sigma * sigma))
    # Safe: exp(-t) >= 1 - t, and one unit covers what these lines round.
    surely = np.clip(np.floor((1.0 - worst) * 2.0**16) - 1.0, 0, 2.0**16 - 1).astype(np.uint32)
    surely[0] = 0
    decided = guide != UNDECIDED
    known = np.where(decided, guide, 0).astype(np.uint32)
    quick = np.where(decided, (known << np.uint32(16)) | surely[known], 0).astype(np.uint32)
    return _Table(shift, 0.5 / (sigma * sigma), high, low, guide, quick)


Bytes = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint32]]
"""For each proposal: the first bits of j, the first bits of the keeping, and u with the sign."""


def _bytes(size: int, entropy: Entropy) -> Bytes:
    drawn = entropy(8 * size)
    return (
        np.frombuffer(drawn, "<u2", size),
        np.frombuffer(drawn, "<u2", size, 2 * size),
        np.frombuffer(drawn, "<u4", size, 4 * size),
    )


Opened = tuple[npt.NDArray[np.intp], npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint32]]
"""Places that are not decided yet, with the bits that they have."""


def _propose_all(table: _Table, out: Draws, entropy: Entropy, start: int) -> Opened:
    """A proposal for every place of ``out``, whose first is ``start``; returns the places where 32 bits do not decide.

    They decide 97 of 100, all at once.
    """
    first, keeping, words = _bytes(len(out), entropy)
    quick = table.quick.take(first)
    places = np.flatnonzero(keeping >= quick.astype(np.uint16))  # the lower half
    quick >>= np.uint32(16)
    quick <<= np.uint32(table.shift)
    quick |= words & np.uint32((1 << table.shift) - 1)
    signs = words.view("<i4") >> np.int32(31)  # 0 or -1
    np.bitwise_xor(quick.view(np.int32), signs, out=out)
    out -= signs
    return places + start, first[places], keeping[places], words[places]


def _propose(table: _Table, bits: Bytes, entropy: Entropy) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Proposals and which of them are kept, looked at one by one."""
    first, keeping, words = bits
    j = _coarse(table, first, entropy)
    u = (words & np.uint32((1 << table.shift) - 1)).astype(np.int64)
    exponent = (u * (u + (j << (table.shift + 1)))).astype(np.float64)
    exponent *= table.scale
    kept = _bernoulli_exp(exponent, keeping, entropy) if table.shift else np.ones(len(j), np.bool_)
    x = (j << table.shift) + u
    negative = words >> np.uint32(31) != 0
    kept &= ~((x == 0) & negative)
    np.negative(x, out=x, where=negative)
    return x, kept


def _coarse(table: _Table, leading: npt.NDArray[np.uint16], entropy: Entropy) -> Integers:
    """j: the number of cumulative probabilities that do not exceed a uniform number, whose first bits are given."""
    j = table.guide[leading]
    undecided = np.flatnonzero(j == UNDECIDED)
    found: Integers = j.astype(np.int64)
    if len(undecided):
        rest = np.frombuffer(entropy(8 * len(undecided)), "<u8") >> np.uint64(GUIDE_BITS)
        value = (leading[undecided].astype(np.uint64) << np.uint64(64 - GUIDE_BITS)) | rest
        at = np.searchsorted(table.high, value, side="right")
        ties = np.flatnonzero(table.high[np.maximum(at - 1, 0)] == value)
        for index in ties:  # 64 bits do not decide: less than one draw in 2^50
            fine = int.from_bytes(entropy(8), "little")
            same = np.flatnonzero(table.high == value[index])
            at[index] = same[0] + int(np.count_nonzero(table.low[same] <= np.uint64(fine)))
        found[undecided] = at
    return found


def _bernoulli_exp(
    exponent: npt.NDArray[np.float64], leading: npt.NDArray[np.uint16], entropy: Entropy
) -> npt.NDArray[np.bool_]:
    """True with probability exp(-exponent), for exponents in [0, 1/2]; ``leading`` are the first 16 bits of 53."""
    further = np.frombuffer(entropy(8 * len(exponent)), "<u8") >> np.uint64(64 - 37)
    uniform = (leading.astype(np.uint64) << np.uint64(37)) | further
    kept: npt.NDArray[np.bool_] = uniform < (np.exp(-exponent) * 2.0**53).astype(np.uint64)
    return kept
