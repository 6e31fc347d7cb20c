"""Who masks with whom and who holds whose shares (docs/protocol.md, "Graphs").

Two graphs over the members of a round, both complete up to 128 and circulant above (Bell et al. 2020, section 3):
- the sharing graph over all members: a device's secrets are shared among its k neighbours, t of which rebuild them;
- a masking graph for each block over its owners: the pairwise masks of the block.
A circulant graph puts the members on a circle in a pseudo-random order and joins each to the k/2 nearest on either
side; the order is fixed by a hash that nobody controls alone.

The coordinator is assumed to see the graph first and to choose then who is said to have dropped out, without limit.
What fails with a probability is only that its colluders, fixed before the roster is hashed, lie badly on the circle:
- sharing: t of a device's neighbours collude;
- masking: a device has so many colluding neighbours that fewer than t survivors among them are honest (isolation), or
  two disjoint stretches of k/2 owners each hold enough colluders to cut the circle (docs/protocol.md, "Lemma").
All events of a roster together stay below 2^-80, below 2^-40 after the 2^40 rosters that a coordinator may try.
Liveness, 2^-20 a roster, counts honest drop-outs at random. Whatever decides a degree is an inequality of integers, so
that two builds never differ; floating point only skips degrees that are out of reach (tests/secagg/test_graph.py).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import numpy.typing as npt

from fedpeft.cohorts import of_members

__all__ = [
    "COMPLETE_UP_TO",
    "MOST_NEIGHBOURS",
    "Degree",
    "circle",
    "masking_degree",
    "neighbours",
    "sharing_degree",
]

COMPLETE_UP_TO = 128
SHARING_BITS = 81
MASKING_BITS = 82
"""To this is added log2 of the number of circulant blocks: each of them may fail."""
LIVENESS_BITS = 20
MOST_NEIGHBOURS = 1024
"""Denser graphs are not looked for: a device would work for minutes, and so would this search."""
MARGIN_BITS = 0.01
"""Far above the error of a sum of logarithms, far below what one more neighbour changes."""

LogTable = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Degree:
    """A graph's numbers.

    Args:
        neighbours: k, whom a device is joined to.
        threshold: t. Sharing: shares that rebuild a secret. Masking: neighbours that must survive beside each
            survivor before a block is opened.
    """

    neighbours: int
    threshold: int


@lru_cache(maxsize=256)
def sharing_degree(members: int, corrupt_fraction: float, dropout_fraction: float) -> Degree | None:
    """Degree and threshold of the sharing graph; None if so few members cannot meet the stated fractions.

    Source: docs/protocol.md, "Graphs"; the tails are of Bell et al. 2020, section 4, for an adversary that has seen
    the graph.
    """
    corrupt = of_members(corrupt_fraction, members)
    if members > COMPLETE_UP_TO:
        dropped = of_members(dropout_fraction, members)
        for k in range(2, min(members - 2, MOST_NEIGHBOURS) + 1, 2):
            threshold = _sharing_threshold(members, corrupt, dropped, k)
            if threshold is not None:
                return Degree(k, threshold)
    k = members - 1
    threshold = max(2 * k // 3 + 1, (k + corrupt) // 2 + 1, corrupt + 1)
    return Degree(k, threshold) if threshold <= k <= MOST_NEIGHBOURS else None


@lru_cache(maxsize=1024)
def masking_degree(
    owners: int, members: int, corrupt_fraction: float, dropout_fraction: float, circulant_blocks: int
) -> Degree | None:
    """Degree of a block's masking graph, and how many neighbours must survive; None means complete.

    Args:
        owners: of the block, m.
        members: of the round; everyone who colludes may own this block.
        corrupt_fraction, dropout_fraction: of the terms.
        circulant_blocks: how many blocks of the round have more than ``COMPLETE_UP_TO`` owners, at least 1.
    """
    if owners <= COMPLETE_UP_TO:
        return None
    corrupt = min(of_members(corrupt_fraction, members), owners)
    dropped = of_members(dropout_fraction, owners)
    bits = MASKING_BITS + (circulant_blocks - 1).bit_length()
    for k in range(4, min((owners - 1) // 2, MOST_NEIGHBOURS) + 1, 2):
        threshold = _masking_threshold(owners, corrupt, dropped, k, bits)
        if threshold is not None:
            return Degree(k, threshold)
    return None


def circle(seed: bytes, members: Sequence[int]) -> tuple[int, ...]:
    """The members in pseudo-random order: by SHA-256 of seed and id."""
    return tuple(sorted(members, key=lambda member: hashlib.sha256(seed + member.to_bytes(4, "big")).digest()))


def neighbours(order: Sequence[int], member: int, degree: int) -> tuple[int, ...]:
    """Whom ``member`` is joined to, ascending; everybody else if the degree reaches all."""
    if degree >= len(order) - 1:
        return tuple(sorted(other for other in order if other != member))
    place = order.index(member)
    steps = [*range(-(degree // 2), 0), *range(1, degree // 2 + 1)]
    return tuple(sorted(order[(place + step) % len(order)] for step in steps))


def _sharing_threshold(n: int, corrupt: int, dropped: int, k: int) -> int | None:
    """The least t for which n * P[t of k neighbours collude] <= 2^-81, if t of them then remain with 1 - 2^-20."""
    estimated = _first_below(_log_tail(n - 1, min(corrupt, n - 1), k) + math.log2(n), -SHARING_BITS + MARGIN_BITS)
    # One that is less than the exact threshold at most, so what it cannot have alive the exact one cannot either.
    if max(estimated, 2) > k or _log_missing(n, dropped, k, max(estimated, 2)) > -LIVENESS_BITS + MARGIN_BITS:
        return None
    all_ways, collude = comb(n - 1, k), _tail(n - 1, min(corrupt, n - 1), k)
    threshold = next((t for t in range(2, k + 1) if (n * collude[t]) << SHARING_BITS <= all_ways), None)
    return threshold if threshold is not None and _remain(n, dropped, k, threshold) else None


def _masking_threshold(m: int, corrupt: int, dropped: int, k: int, bits: int) -> int | None:
    """The least t that excludes isolation and two walls in a circle of m owners, if t neighbours then remain."""
    half = k // 2
    alone = _first_below(_log_tail(m - 1, min(corrupt, m - 1), k) + math.log2(m), -bits + MARGIN_BITS)
    walls = 2 * _log_tail(m, corrupt, half) + math.log2(comb(m, 2))
    estimated = max(alone, half + _first_below(walls, -bits + MARGIN_BITS))
    if estimated > k or _log_missing(m, dropped, k, estimated) > -LIVENESS_BITS + MARGIN_BITS:
        return None
    all_ways, collude = comb(m - 1, k), _tail(m - 1, min(corrupt, m - 1), k)
    isolated = next((t for t in range(k + 1) if (m * collude[t]) << bits <= all_ways), k + 1)
    stretches, heavy = comb(m, half), _tail(m, corrupt, half)
    wall = next((a for a in range(half + 1) if (comb(m, 2) * heavy[a] ** 2) << bits <= stretches**2), k)
    threshold = max(isolated, half + wall)
    return threshold if threshold <= k and _remain(m, dropped, k, threshold) else None


def _remain(n: int, dropped: int, k: int, threshold: int) -> bool:
    """Whether n * P[fewer than ``threshold`` of k neighbours remain] <= 2^-20, exactly."""
    all_ways = comb(n - 1, k)
    return (n * (all_ways - _tail(n - 1, n - 1 - dropped, k)[threshold])) << LIVENESS_BITS <= all_ways


def _tail(population: int, marked: int, drawn: int) -> list[int]:
    """[t] = how many of the choices of ``drawn`` out of ``population`` hold t or more marked; t = 0..drawn + 1."""
    ways = [0] * (drawn + 2)
    for x in range(drawn, -1, -1):
        fits = x <= marked and drawn - x <= population - marked
        ways[x] = ways[x + 1] + (comb(marked, x) * comb(population - marked, drawn - x) if fits else 0)
    return ways


def _log_missing(n: int, dropped: int, k: int, threshold: int) -> float:
    """log2 of n * P[fewer than ``threshold`` of k neighbours remain]."""
    below = _log_tail(n - 1, dropped, k)[k - threshold + 1]  # so many of the k are dropped
    return float(below) + math.log2(n)


def _first_below(log_probabilities: LogTable, bound: float) -> int:
    """The first index whose entry is at most the bound; the length if there is none."""
    found = np.nonzero(log_probabilities <= bound)[0]
    return int(found[0]) if len(found) else len(log_probabilities)


def _log_tail(population: int, marked: int, drawn: int) -> LogTable:
    """[t] = log2 P[t or more of the drawn are marked], (drawn + 2,)."""
    x = np.arange(max(0, drawn - population + marked), min(drawn, marked) + 1)
    log_factorial = _log_factorials(population)

    def log_comb(n: int, k: LogTable | npt.NDArray[np.int64] | int) -> LogTable:
        return np.asarray(log_factorial[n] - log_factorial[k] - log_factorial[n - k])

    table = np.full(drawn + 2, -np.inf)
    table[x] = log_comb(marked, x) + log_comb(population - marked, drawn - x) - log_comb(population, drawn)
    return np.logaddexp2.accumulate(table[::-1])[::-1]


@lru_cache(maxsize=16)
def _log_factorials(most: int) -> LogTable:
    """[n] = log2 of n!, n = 0..most."""
    return np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, most + 1)))])
