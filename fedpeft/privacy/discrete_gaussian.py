"""The discrete Gaussian on the integers, P[x] proportional to exp(-x^2 / 2 sigma^2), from cryptographic bytes.

Never a rounded float: rounded floats leak through their gaps (Mironov 2012). Rectangles and a rest, as in Marsaglia
(1963). The integers are cut into columns of 2^k, sigma = sigma_0 * 2^k with sigma_0 of 64 to 128, or to 256 where the
bits end. Under the lowest probability of each column fit so many rectangles of mass 2^-16; all of them together hold
some 99 of 100 draws, for which 16 bits choose the rectangle and k more the place in it. What is left over, the rest,
is drawn exactly as well:

    a column, with probability proportional to W = 2^k (highest probability in it - what its rectangles cover)
    u uniform on 0 .. 2^k - 1
    kept with probability (probability at u - covered) / (highest - covered), else both are drawn again

What a computer adds is bounded by ``RELATIVE_ERROR``: the tables come from 60 decimal digits; choices among the columns
take 64 further bits when 64 do not decide; whether a place is kept is decided by floats only where their error cannot
matter, and else by 60 digits. Constant time is not claimed: how often a draw is repeated depends on values that are
noise, never on an input.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy

__all__ = ["MAX_SIGMA", "RELATIVE_ERROR", "discrete_gaussian"]

MAX_SIGMA = 2.0**24
"""The farthest place is below 2^28, the difference of two squares in a column below 2^46: exact in a float64."""

RELATIVE_ERROR = 2.0**-50
"""Every probability above 2^-78 is within this factor of the stated one: a column's is exact to 2^-128, where the table
also ends, and the rest to 2^-180. What is less probable than 2^-78 never comes up: 10^12 draws see it with probability
10^-11."""

COARSE_SIGMA = 128.0
RECTANGLE_BITS = 16
PLACE_BITS = 16
TABLE_BITS = 128
DIGITS = 60
GUIDE_BITS = 16
PIECE = 1 << 15
"""Drawn at once: its temporaries and the table of rectangles stay in the second-level cache."""

FLOAT_ERROR = 2.0**-48
"""Of exp(-e) - c - v (1 - c) for e below 1/4: four times what rounding e, exp, c, v and the differences adds."""

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")

Integers = npt.NDArray[np.int64]
Draws = npt.NDArray[np.int32]


def discrete_gaussian(sigma: float, size: int, entropy: Entropy) -> Draws:
    """Independent draws.

    Args:
        sigma: the parameter; the standard deviation too, up to 1e-7 from sigma = 1 on. 0 < sigma <= 2^24.
        size: how many.
        entropy: cryptographic bytes; 4 to 5 a draw.

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
    rest = [_rectangles(table, out[start : start + PIECE], entropy) + start for start in range(0, size, PIECE)]
    places = np.concatenate(rest) if rest else np.empty(0, np.intp)
    while len(places):
        drawn, kept = _propose(table, len(places), entropy)
        out[places] = drawn
        places = places[~kept]
    return out


@dataclass(frozen=True, slots=True)
class _Table:
    """The rectangles, and the columns of the rest.

    Args:
        sigma: the parameter.
        shift: k.
        mask: 2^k - 1.
        start: for each of 2^16 numbers the first place of its rectangle; arbitrary from ``limit`` on.
        limit: 2^16 times the number of rectangles: a word from here on belongs to the rest.
        high, low: cumulative probabilities of the rest's columns times 2^128, as two 64-bit halves; the last is left
            out.
        guide: for each value of the first 16 bits the column that they decide, or UNDECIDED.
        column: of each column its first place.
        covered: what its rectangles cover, relative to its highest probability.
        rectangles: how many it holds.
    """

    sigma: float
    shift: int
    mask: np.uint32
    start: Draws
    limit: np.uint32
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    guide: npt.NDArray[np.uint16]
    column: Integers
    covered: npt.NDArray[np.float64]
    rectangles: Integers


@lru_cache(maxsize=8)
def _table(sigma: float) -> _Table:
    shift = min(max(0, math.frexp(sigma / COARSE_SIGMA)[1]), PLACE_BITS)
    width = 1 << shift
    # Beyond the last column lies less than 2^-128 of the mass.
    last = math.ceil(math.ldexp(sigma, -shift) * math.sqrt(2 * math.log(2) * (TABLE_BITS + 8))) + 1
    with localcontext() as context:
        context.prec = DIGITS
        total = _mass(sigma)
        # Column j >= 0 holds 2^k j .. 2^k (j + 1) - 1, column -1 - j their mirror images moved by one: -1 - x.
        highest = [*_bell(sigma, 0, width, last), *_bell(sigma, 1, width, last)]
        lowest = [*_bell(sigma, width - 1, width, last), *_bell(sigma, width, width, last)]
        fit = [int(low * width * 2**RECTANGLE_BITS / total) for low in lowest]
        tops = [high * width / total for high in highest]
        rest = [top - Decimal(count) / 2**RECTANGLE_BITS for top, count in zip(tops, fit, strict=True)]
        covered = [float(count / (top * 2**RECTANGLE_BITS)) for top, count in zip(tops, fit, strict=True)]
        whole, running, cumulative = sum(rest, Decimal(0)), Decimal(0), []
        for weight in rest[:-1]:
            running += weight
            cumulative.append(min(int(running / whole * (1 << TABLE_BITS)), (1 << TABLE_BITS) - 1))
    high = np.array([value >> 64 for value in cumulative], np.uint64)
    ahead = np.arange(last, dtype=np.int64) << shift
    column = np.concatenate([ahead, -width - ahead])
    start = np.zeros(1 << RECTANGLE_BITS, np.int32)
    start[: sum(fit)] = np.repeat(column, fit)
    return _Table(
        sigma=sigma,
        shift=shift,
        mask=np.uint32(width - 1),
        start=start,
        limit=np.uint32(sum(fit) << (32 - RECTANGLE_BITS)),
        high=high,
        low=np.array([value & (2**64 - 1) for value in cumulative], np.uint64),
        guide=_guide(high),
        column=column,
        covered=np.array(covered),
        rectangles=np.array(fit, np.int64),
    )


UNDECIDED = np.iinfo(np.uint16).max


def _guide(high: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    edges = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    first = np.searchsorted(high, edges, side="right")
    final = np.searchsorted(high, edges | np.uint64((1 << (64 - GUIDE_BITS)) - 1), side="right")
    # Safe: a bucket that holds no threshold, nor touches one, has a single column.
    touched = np.isin(np.arange(1 << GUIDE_BITS), high >> np.uint64(64 - GUIDE_BITS))
    return np.where((first == final) & ~touched, first, UNDECIDED).astype(np.uint16)


def _bell(sigma: float, first: int, step: int, count: int) -> Iterator[Decimal]:
    """exp(-x^2 / 2 sigma^2) at x = first, first + step, ...: products, because exp of 60 digits is slow."""
    scale = 1 / (2 * Decimal(sigma) ** 2)
    value = (-scale * first * first).exp()
    ratio, turn = (-scale * (2 * first + step) * step).exp(), (-scale * 2 * step * step).exp()
    for _ in range(count):
        yield value
        value *= ratio
        ratio *= turn


def _mass(sigma: float) -> Decimal:
    """The sum of exp(-x^2 / 2 sigma^2) over all integers."""
    if sigma >= COARSE_SIGMA / 2:
        return Decimal(sigma) * (2 * PI).sqrt()  # Poisson's formula: what it leaves out is below 10^-35000
    reach = math.ceil(20 * sigma) + 1
    return 2 * sum(_bell(sigma, 1, 1, reach), Decimal(0)) + 1


def _rectangles(table: _Table, out: Draws, entropy: Entropy) -> npt.NDArray[np.intp]:
    """Fills ``out``, and returns where in it a draw from the rest belongs."""
    drawn = entropy(4 * len(out))
    words = np.frombuffer(drawn, "<u4", len(out))
    chosen = np.frombuffer(drawn, "<u2")[1::2].astype(np.intp)  # the upper half of each word
    table.start.take(chosen, out=out, mode="clip")
    out |= (words & table.mask).view(np.int32)
    return (words >= table.limit).nonzero()[0]


def _propose(table: _Table, size: int, entropy: Entropy) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Proposals for the rest, and which of them are kept."""
    at = _columns(table, size, entropy)
    column = table.column[at]
    u = (np.frombuffer(entropy(4 * size), "<u4") & table.mask).astype(np.int64)
    x = column + u
    if not table.shift:
        return x, np.ones(size, np.bool_)
    nearest = np.where(column < 0, column + (1 << table.shift) - 1, column)
    exponent = (x * x - nearest * nearest).astype(np.float64) * (0.5 / (table.sigma * table.sigma))
    return x, _keep(table, at, x, exponent, entropy)


def _columns(table: _Table, size: int, entropy: Entropy) -> Integers:
    """Columns of the rest: how many cumulative probabilities do not exceed a uniform number."""
    value = np.frombuffer(entropy(8 * size), "<u8")
    found: Integers = table.guide[value >> np.uint64(64 - GUIDE_BITS)].astype(np.int64)
    undecided = np.flatnonzero(found == UNDECIDED)
    value = value[undecided]
    at = np.searchsorted(table.high, value, side="right")
    for index in np.flatnonzero(table.high[np.maximum(at - 1, 0)] == value):  # less than one in 2^50
        fine = int.from_bytes(entropy(8), "little")
        same = np.flatnonzero(table.high == value[index])
        at[index] = same[0] + int(np.count_nonzero(table.low[same] <= np.uint64(fine)))
    found[undecided] = at
    return found


def _keep(
    table: _Table, at: Integers, x: Integers, exponent: npt.NDArray[np.float64], entropy: Entropy
) -> npt.NDArray[np.bool_]:
    """True with probability (exp(-exponent) - covered) / (1 - covered)."""
    drawn = np.frombuffer(entropy(8 * len(at)), "<u8")
    covered = table.covered[at]
    uniform = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
    over = np.exp(-exponent) - covered - uniform * (1.0 - covered)
    kept: npt.NDArray[np.bool_] = over > 0
    for index in np.flatnonzero(np.abs(over) <= FLOAT_ERROR):  # less than one in 2^30
        kept[index] = _keep_exactly(table, int(at[index]), int(x[index]), int(drawn[index]), entropy)
    return kept


def _keep_exactly(table: _Table, at: int, x: int, leading: int, entropy: Entropy) -> bool:
    """The same with 60 digits; ``leading`` are the first 64 bits of 192."""
    uniform = (leading << TABLE_BITS) | int.from_bytes(entropy(TABLE_BITS // 8), "little")
    column = int(table.column[at])
    nearest = column if column >= 0 else column + (1 << table.shift) - 1
    with localcontext() as context:
        context.prec = DIGITS
        scale = 1 / (2 * Decimal(table.sigma) ** 2)
        rectangle = _mass(table.sigma) / (1 << (table.shift + RECTANGLE_BITS))
        covered = int(table.rectangles[at]) * rectangle
        highest, here = ((-scale * place * place).exp() for place in (nearest, x))
        return Decimal(uniform) * (highest - covered) < (here - covered) * (1 << (64 + TABLE_BITS))
