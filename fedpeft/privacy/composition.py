"""What several releases cost together, of whichever unit: the one place that turns a ledger into an epsilon."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedpeft.privacy.accountant import Release, epsilon
from fedpeft.privacy.sampled_gaussian import MAX_EPSILON, SampledRelease, sampled_epsilon

__all__ = ["OURS", "Accountant", "Charge", "Protected", "total_epsilon"]

Charge = Release | SampledRelease
"""What a ledger may hold: a noisy sum over clients, or a device's steps of DP-SGD."""

Protected = Literal["client", "person", "example"]
"""Whom an epsilon is about, the largest unit first."""

FINER: tuple[Protected, ...] = ("client", "person", "example")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accountant:
    """Who says what releases of one kind cost: epsilon at a delta of so many of each, infinite where nothing holds.

    Args:
        clients: of noisy sums over clients.
        sampled: of steps of DP-SGD.
    """

    clients: Callable[[Sequence[tuple[Release, int]], float], float]
    sampled: Callable[[Sequence[tuple[SampledRelease, int]], float], float]


OURS = Accountant(clients=epsilon, sampled=sampled_epsilon)


def total_epsilon(
    charges: Iterable[Charge], delta: float, unit: Protected | None = None, *, by: Accountant = OURS
) -> float:
    """Epsilon at ``delta`` of all these releases together.

    Of several units the epsilons add up, each at an equal part of delta. A release that hides a larger unit hides a
    smaller one inside it less well than itself: without an example, a person's (client's) clipped contribution is not
    gone but another one, up to 2 C away instead of C. One that hides a smaller unit promises a larger one nothing.

    Args:
        charges: what was released.
        delta: 0 < delta < 1.
        unit: whom the epsilon is about; None: the smallest unit of these charges.
        by: whose figures are added up; see ``fedpeft.privacy.second_opinion`` for another's.

    Returns:
        Infinity where some release hides something smaller than ``unit`` alone.
    """
    kinds: dict[Protected, list[Charge]] = {}
    for charge in charges:
        kinds.setdefault(_hides(charge), []).append(charge)
    if not kinds:
        return 0.0
    about = max(kinds, key=FINER.index) if unit is None else unit
    if any(FINER.index(kind) > FINER.index(about) for kind in kinds):
        return math.inf
    return sum(_epsilon(own, delta / len(kinds), by, inside=kind != about) for kind, own in kinds.items())


def _hides(charge: Charge) -> Protected:
    return "client" if isinstance(charge, Release) else charge.unit


def _epsilon(charges: Sequence[Charge], delta: float, by: Accountant, *, inside: bool) -> float:
    """Of releases of one kind; ``inside``: for something inside the unit that they hide."""
    clients = Counter(charge for charge in charges if isinstance(charge, Release))
    if clients and inside:  # the sensitivity is 2 C, which is half the noise multiplier
        halved = [(replace(one, noise_multiplier=one.noise_multiplier / 2), times) for one, times in clients.items()]
        return by.clients(halved, delta)
    if clients:
        return by.clients(list(clients.items()), delta)
    sampled = list(Counter(charge for charge in charges if isinstance(charge, SampledRelease)).items())
    return _twice(lambda part: by.sampled(sampled, part), delta) if inside else by.sampled(sampled, delta)


def _twice(single: Callable[[float], float], delta: float) -> float:
    """By way of the unit's absence: two neighbours in a row are (2 epsilon, (1 + e^epsilon) delta')-private."""
    part = delta / 2
    for _ in range(40):
        found = single(part)
        if not found < MAX_EPSILON:  # whose power no part of delta pays for, nor a float64 holds
            return math.inf
        if part * (1 + math.exp(found)) <= delta:
            return 2 * found
        part = min(part / 2, delta / (1 + math.exp(found)))
    return math.inf
