"""Who masks with whom and who holds whose shares (docs/protocol.md, "Graphs").

Two graphs over the members of a round, both complete up to 128 and circulant above (Bell et al. 2020, section 3):
- the sharing graph over all members: a device's secrets are shared among its k neighbours, t of which rebuild them;
- a masking graph for each block over its owners: the pairwise masks of the block.
A circulant graph puts the members on a ring in a pseudo-random order and joins each to the k/2 nearest on either
side; the order is fixed by a hash that nobody controls alone. Degrees follow from the stated fractions:
- safety 2^-40: fewer than t of a device's neighbours collude, and the honest survivors of a block stay connected;
- in full mode a coordinator may try 2^40 rosters, and two different survivor sets cannot both gather t vouchers:
  2t > k + c for c colluding neighbours;
- liveness 2^-20: t neighbours remain.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedpeft.secagg.spec import Mode

__all__ = ["COMPLETE_UP_TO", "Degree", "circle", "masking_degree", "neighbours", "sharing_degree"]

COMPLETE_UP_TO = 128
SAFETY_BITS = 40
LIVENESS_BITS = 20
GRINDING_BITS = {Mode.FULL: 40, Mode.FAST: 0}


@dataclass(frozen=True, slots=True)
class Degree:
    """The sharing graph's numbers.

    Args:
        neighbours: k, holders of a device's shares (never the device itself).
        threshold: t, shares that rebuild a secret.
    """

    neighbours: int
    threshold: int


@lru_cache(maxsize=256)
def sharing_degree(members: int, mode: Mode, corrupt_fraction: float, dropout_fraction: float) -> Degree | None:
    """Degree and threshold of the sharing graph; None if so few members cannot meet the stated fractions."""
    if members > COMPLETE_UP_TO:
        for k in range(2, members - 1, 2):
            found = _circulant_threshold(members, k, mode, corrupt_fraction, dropout_fraction)
            if found is not None:
                return Degree(k, found)
    k, corrupt = members - 1, math.ceil(corrupt_fraction * members)
    threshold = max(2 * k // 3 + 1, (k + corrupt) // 2 + 1, corrupt + 1)
    return Degree(k, threshold) if threshold <= k else None


@lru_cache(maxsize=1024)
def masking_degree(
    owners: int, members: int, mode: Mode, corrupt_fraction: float, dropout_fraction: float
) -> int | None:
    """Degree of a block's masking graph; None means complete.

    The worst case is taken: everyone who colludes or vanishes owns this block.
    """
    if owners <= COMPLETE_UP_TO:
        return None
    bad = (corrupt_fraction + dropout_fraction) * members / owners
    if bad >= 1:
        return None
    pairs = math.log2(math.comb(owners, 2))
    budget = SAFETY_BITS + GRINDING_BITS[mode]
    # Two breaks of k/2 bad members in a row cut the circle: C(m, 2) * bad^k <= 2^-budget.
    k = 2 if bad == 0 else math.ceil((pairs + budget) / -math.log2(bad))
    k += k % 2
    return k if k < owners - 1 else None


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


def _circulant_threshold(n: int, k: int, mode: Mode, corrupt: float, dropout: float) -> int | None:
    """The smallest threshold for which a circulant sharing graph of degree k is safe and live, if any."""
    bad, gone = math.ceil(corrupt * n), math.ceil(dropout * n)
    safety = 2.0 ** -(SAFETY_BITS + GRINDING_BITS[mode])
    at_least = np.cumsum(_hypergeometric(n - 1, bad, k)[::-1])[::-1]  # [t] = P[>= t of k neighbours collude]
    safe = np.nonzero(n * at_least <= safety)[0]
    lowest = int(safe[0]) if len(safe) else k + 1
    threshold = lowest if mode is Mode.FAST else max(lowest, (k + lowest - 1) // 2 + 1)
    threshold = max(threshold, 2)
    if threshold > k:
        return None
    at_most = np.cumsum(_hypergeometric(n - 1, n - 1 - gone, k))  # [t - 1] = P[< t neighbours remain]
    return threshold if n * at_most[threshold - 1] <= 2.0**-LIVENESS_BITS else None


def _hypergeometric(population: int, marked: int, drawn: int) -> npt.NDArray[np.float64]:
    """P[x of the drawn are marked] for x = 0..drawn."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    probability = np.zeros(drawn + 1)
    for x in range(max(0, drawn - population + marked), min(drawn, marked) + 1):
        ways = log_choose(marked, x) + log_choose(population - marked, drawn - x)
        probability[x] = math.exp(ways - log_choose(population, drawn))
    return probability
