"""An audit: does the noise that is really drawn keep what the accountant claims? A lower bound on epsilon, by attack.

Canaries that an attacker knows are each put in or left out by a fair coin; from what is released the attacker
guesses which are in. Under (epsilon, delta)-DP so many guesses can hardly be right (Steinke, Nasr and Jagielski 2023,
Theorem 5.2), so right guesses bound epsilon from below, with one run. A bound above the claim refutes the build; one
below proves nothing, and with m canaries no bound can pass ``saturation``.

``audit_clients`` sends canary clients through the code that devices and coordinator use: clip, grid, noise share,
ring, sum. It leaves the masks out, which cancel exactly (tests/secagg). ``fedpeft.tuning.canaries`` does the same for
the steps of DP-SGD.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.clipping import clip
from fedpeft.privacy.mechanism import Mechanism, decode_sum, noisy_words, size_mechanism

__all__ = ["AuditResult", "audit_clients", "coin_flips", "lower_bound", "saturation", "verdict"]

CONFIDENCE = 0.95
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Parts of the canaries that are guessed in, and as many out. The best counts; the confidence pays for choosing."""

BLOCKS = (BlockId("canary.a"), BlockId("canary.b"), BlockId("canary.c"), BlockId("canary.d"))
"""A canary lies in all of them: clipping block by block would let it be twice as long."""

OVER_NORM = 100.0
"""Canaries are so many times longer than the clip norm before they are clipped."""

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What one audit found.

    Args:
        claimed: epsilon of the accountant, at ``delta``.
        delta: of claim and bound.
        bound: epsilon is at least this, with 95 % confidence.
        most: the bound that this many canaries give when every guess is right.
        canaries, releases: put in or left out; sums looked at.
    """

    claimed: float
    delta: float
    bound: float
    most: float
    canaries: int
    releases: int

    @property
    def refuted(self) -> bool:
        """Whether the claim cannot be true."""
        return self.bound > self.claimed


def audit_clients(
    *, noise_multiplier: float, l2_clip_norm: float, rounds: int, canaries: int, delta: float, entropy: Entropy
) -> AuditResult:
    """Attacks the client-level mechanism with canary clients that all survive, where nobody's noise is in excess.

    Args:
        noise_multiplier, l2_clip_norm: of every round.
        rounds: sums that the attacker sees; the same clients contribute to all.
        canaries: clients; at least 20.
        delta: of claim and bound; far below 1 / canaries, or it swallows the bound.
        entropy: for coins and noise; the operating system's.
    """
    mechanism = size_mechanism(
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=noise_multiplier,
        colluders=0,
        devices=canaries,
        threshold=canaries,
        bits=32,
        parameters=len(BLOCKS) * canaries,
    )
    present = coin_flips(canaries, entropy)
    scores = np.zeros(canaries)
    for _ in range(rounds):
        summed = _one_sum(present, mechanism, entropy)
        scores += np.sum([decode_sum(words, mechanism.terms.step) for words in summed], axis=0)
    claimed = epsilon([(mechanism.release, rounds)], delta)
    return verdict(scores, present, claimed=claimed, delta=delta, releases=rounds)


def _one_sum(present: Flags, mechanism: Mechanism, entropy: Entropy) -> list[npt.NDArray[np.unsignedinteger]]:
    """What the coordinator holds after a round: every client adds noise, only those present a canary."""
    total = [np.zeros(len(present), "<u4") for _ in BLOCKS]
    for place, here in enumerate(present):
        vectors = {block: np.zeros(len(present), np.float32) for block in BLOCKS}
        for vector in vectors.values():
            vector[place] = OVER_NORM * mechanism.terms.l2_clip_norm if here else 0.0
        clipped = clip(vectors, l2_clip_norm=mechanism.terms.l2_clip_norm, allowance=mechanism.allowance)
        words = noisy_words(clipped.vectors, mechanism, entropy)
        for part, block in zip(total, BLOCKS, strict=True):
            np.add(part, words[block], out=part)
    return [*total]


def coin_flips(count: int, entropy: Entropy) -> Flags:
    """Fair coins."""
    bits = np.unpackbits(np.frombuffer(entropy(-(-count // 8)), np.uint8))
    return bits[:count].astype(np.bool_)


def verdict(scores: Scores, present: Flags, *, claimed: float, delta: float, releases: int) -> AuditResult:
    """The attack's result: canaries with the highest scores are guessed in, those with the lowest out."""
    canaries = len(scores)
    order = np.argsort(scores, kind="stable")
    failure = (1 - CONFIDENCE) / len(SHARES)
    bounds = []
    for share in SHARES:
        each = max(1, int(share * canaries))
        right = int(present[order[-each:]].sum()) + int((~present[order[:each]]).sum())
        bounds.append(lower_bound(canaries, 2 * each, right, delta=delta, failure=failure))
    return AuditResult(
        claimed=claimed,
        delta=delta,
        bound=max(bounds),
        most=saturation(canaries, delta),
        canaries=canaries,
        releases=releases,
    )


def saturation(canaries: int, delta: float) -> float:
    """The largest bound that so many canaries can give: every guess right."""
    guesses = [2 * max(1, int(share * canaries)) for share in SHARES]
    failure = (1 - CONFIDENCE) / len(SHARES)
    return max(lower_bound(canaries, count, count, delta=delta, failure=failure) for count in guesses)


def lower_bound(canaries: int, guesses: int, right: int, *, delta: float, failure: float) -> float:
    """Epsilon with which so many right guesses would still happen with probability ``failure``; less is refuted.

    Source: Steinke, Nasr and Jagielski 2023, Theorem 5.2 and appendix D.

    Example:
        >>> lower_bound(100, 100, 50, delta=1e-5, failure=0.05)
        0.0
        >>> 3.0 < lower_bound(100, 100, 100, delta=1e-5, failure=0.05) < 4.0
        True
    """

    def possible(epsilon: float) -> bool:
        return _chance(canaries, guesses, right, epsilon, delta) >= failure

    if possible(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not possible(high):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """An upper bound on the probability of at least so many right guesses under (epsilon, delta)-DP."""
    p = 1.0 / (1.0 + math.exp(-epsilon))
    log_pmf = [
        math.lgamma(guesses + 1)
        - math.lgamma(k + 1)
        - math.lgamma(guesses - k + 1)
        + k * math.log(p)
        + (guesses - k) * math.log1p(-p)
        for k in range(guesses + 1)
    ]
    pmf = np.exp(log_pmf)
    tail = float(pmf[right:].sum())
    below: Sequence[float] = np.cumsum(pmf[:right][::-1]).tolist()  # [i - 1] = P[right > Binomial >= right - i]
    worst = max((mass / i for i, mass in enumerate(below, 1)), default=0.0)
    return min(1.0, tail + 2 * canaries * delta * worst)
