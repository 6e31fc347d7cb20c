"""Rebuilding a secret from shares of which some are wrong (docs/protocol.md, "Repair").

The dealer committed to the secret, so every guess can be checked. First the error-correcting decoder of Reed-Solomon
codes (Gao 2003) finds up to (m - t) / 2 wrong shares among m at once; then, beyond that radius, subsets are tried by
leaving out one, two, ... holders, up to a fixed number of tries. Only runs when the first t shares did not fit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice

from fedpeft.secagg.shamir import PRIME, combine, weights

__all__ = ["Repaired", "repair"]

MAX_SUBSETS = 500
"""Bounds the time a malicious dealer can cost the coordinator: a fraction of a second a secret."""

Polynomial = list[int]  # coefficients, lowest power first, no trailing zeros


@dataclass(frozen=True, slots=True)
class Repaired:
    """The secret, and the holders whose share did not fit it.

    Args:
        secret: the 32 bytes that the dealer committed to.
        wrong: holders whose shares are not on the polynomial; empty if unknown.
    """

    secret: bytes
    wrong: frozenset[int]

    def __repr__(self) -> str:
        return f"Repaired(wrong={sorted(self.wrong)})"


def repair(shares: Mapping[int, int], threshold: int, is_right: Callable[[bytes], bool]) -> Repaired | None:
    """The committed secret from shares of which some may be wrong; None if it cannot be found.

    Args:
        shares: holder id -> field element, at least ``threshold`` of them.
        threshold: shares that determine the secret.
        is_right: whether a candidate is what the dealer committed to.
    """
    if len(shares) < threshold:
        return None
    polynomial = _decode(shares, threshold)
    if polynomial is not None and polynomial[0] < 1 << 256:
        secret = polynomial[0].to_bytes(32, "big")
        if is_right(secret):
            return Repaired(secret, frozenset(x for x, y in shares.items() if _evaluate(polynomial, x) != y))
    for subset in dict.fromkeys(islice(_subsets(sorted(shares), threshold), MAX_SUBSETS)):
        guess = combine(weights(subset), [shares[x] for x in subset])
        if guess is not None and is_right(guess):
            return Repaired(guess, frozenset())
    return None


def _subsets(holders: list[int], threshold: int) -> Iterator[tuple[int, ...]]:
    """The first ``threshold`` holders after leaving out none, each one, each two, ... of them."""
    for left_out in range(len(holders) - threshold + 1):
        for kept in combinations(holders, len(holders) - left_out):
            yield kept[:threshold]


def _decode(shares: Mapping[int, int], threshold: int) -> Polynomial | None:
    """Gao's decoder: the polynomial of degree < threshold that all but few shares lie on."""
    everything: Polynomial = [1]
    for x in shares:
        everything = _trim([*_scaled(everything, -x), 0], [0, *everything])
    a, b = everything, _interpolate(shares)
    va: Polynomial = []
    vb: Polynomial = [1]
    while 2 * (len(b) - 1) >= len(shares) + threshold and b:
        quotient, remainder = _divide(a, b)
        a, b = b, remainder
        va, vb = vb, _subtract(va, _multiply(quotient, vb))
    if not b or not vb:
        return None
    polynomial, remainder = _divide(b, vb)
    return polynomial if not remainder and 0 < len(polynomial) <= threshold else None


def _interpolate(shares: Mapping[int, int]) -> Polynomial:
    """Newton's divided differences."""
    xs, table = list(shares), list(shares.values())
    for level in range(1, len(xs)):
        for i in range(len(xs) - 1, level - 1, -1):
            table[i] = (table[i] - table[i - 1]) * pow(xs[i] - xs[i - level], -1, PRIME) % PRIME
    polynomial: Polynomial = []
    for x, value in zip(reversed(xs), reversed(table), strict=True):
        polynomial = _trim([*_scaled(polynomial, -x), 0], [value, *polynomial])
    return polynomial


def _trim(left: Polynomial, right: Polynomial) -> Polynomial:
    """Their sum without trailing zeros."""
    size = max(len(left), len(right))
    total = [((left[i] if i < len(left) else 0) + (right[i] if i < len(right) else 0)) % PRIME for i in range(size)]
    while total and not total[-1]:
        total.pop()
    return total


def _scaled(polynomial: Polynomial, factor: int) -> list[int]:
    """A multiple, not reduced modulo the prime yet: ``_trim`` does that."""
    return [value * factor for value in polynomial]


def _subtract(left: Polynomial, right: Polynomial) -> Polynomial:
    return _trim(left, _scaled(right, -1))


def _multiply(left: Polynomial, right: Polynomial) -> Polynomial:
    product = [0] * max(len(left) + len(right) - 1, 0)
    for i, value in enumerate(left):
        for j, other in enumerate(right):
            product[i + j] += value * other
    return _trim([value % PRIME for value in product], [])


def _divide(left: Polynomial, right: Polynomial) -> tuple[Polynomial, Polynomial]:
    remainder, lead = list(left), pow(right[-1], -1, PRIME)
    quotient = [0] * max(len(left) - len(right) + 1, 0)
    for shift in range(len(quotient) - 1, -1, -1):
        factor = remainder[shift + len(right) - 1] * lead % PRIME
        quotient[shift] = factor
        for i, value in enumerate(right):
            remainder[shift + i] = (remainder[shift + i] - factor * value) % PRIME
    return _trim(quotient, []), _trim(remainder, [])


def _evaluate(polynomial: Polynomial, x: int) -> int:
    y = 0
    for coefficient in reversed(polynomial):
        y = (y * x + coefficient) % PRIME
    return y
