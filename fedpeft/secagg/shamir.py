"""Shamir's secret sharing of 32-byte secrets over the prime 2^256 + 297 (docs/protocol.md, "Shares").

Source: Shamir 1979; the prime is the smallest above 2^256, so that every 32-byte string is a secret. A share is a
field element at the holder's participant id, 33 bytes, big-endian. The Lagrange weights depend on the holders only
and are computed once for each set of holders. Repair of bad shares is in ``repair.py``.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from fedpeft.errors import FedpeftError

__all__ = ["COEFFICIENT_BYTES", "PRIME", "SHARE_SIZE", "combine", "combine_without", "share_value", "split", "weights"]

PRIME = (1 << 256) + 297
SHARE_SIZE = 33
COEFFICIENT_BYTES = 48
"""Reduced modulo the prime, 384 uniform bits are uniform to within 2^-127."""


def split(
    secrets: Sequence[bytes], threshold: int, holders: Sequence[int], coefficients: Sequence[bytes]
) -> list[bytes]:
    """For each holder its share of every secret; any ``threshold`` holders rebuild them, fewer learn nothing.

    Args:
        secrets: 32 bytes each.
        threshold: how many shares rebuild one, 1..len(holders).
        holders: distinct ids >= 1, the points of evaluation.
        coefficients: for each secret 48 * (threshold - 1) fresh random bytes.

    Returns:
        For each holder 33 bytes a secret.

    Guarantees:
        test_threshold_shares_rebuild_the_secret, test_fewer_shares_than_the_threshold_fit_every_secret
        (tests/secagg/test_shamir.py).
    """
    if not 1 <= threshold <= len(holders) or len(set(holders)) != len(holders) or min(holders) < 1:
        raise FedpeftError(f"Expected 1 <= threshold <= {len(holders)} distinct holders >= 1, found {threshold}.")
    size = COEFFICIENT_BYTES * (threshold - 1)
    if len(coefficients) != len(secrets) or any(len(text) != size for text in coefficients):
        raise FedpeftError(f"Expected {len(secrets)} times {size} coefficient bytes, found another number.")
    # All polynomials are evaluated at once, in lanes of one long integer that are too wide to carry into each other:
    # the result is below 2^257 * threshold * x^threshold. Reduced once, at the end.
    lane = 257 + threshold * max(holders).bit_length() + threshold.bit_length()
    cuts = range(0, size, COEFFICIENT_BYTES)
    steps = [
        _in_lanes([int.from_bytes(text[cut : cut + COEFFICIENT_BYTES], "big") % PRIME for text in coefficients], lane)
        for cut in cuts
    ]
    steps.append(_in_lanes([int.from_bytes(secret, "big") for secret in secrets], lane))
    shares, mask = [], (1 << lane) - 1
    for x in holders:
        y = 0
        for step in steps:  # Horner, highest power first
            y = y * x + step
        values = [((y >> lane * index) & mask) % PRIME for index in range(len(secrets))]
        shares.append(b"".join(value.to_bytes(SHARE_SIZE, "big") for value in values))
    return shares


def _in_lanes(values: Sequence[int], lane: int) -> int:
    return sum(value << lane * index for index, value in enumerate(values))


def share_value(share: bytes) -> int | None:
    """The field element of a share; None if it is not one, as in the all-ones share that stands for "none"."""
    value = int.from_bytes(share, "big")
    return value if len(share) == SHARE_SIZE and value < PRIME else None


@lru_cache(maxsize=64)
def weights(holders: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at zero for these points, in their order."""
    numerator = 1
    for x in holders:
        numerator = numerator * x % PRIME
    denominators = []
    for j, xj in enumerate(holders):
        product = xj
        for m, xm in enumerate(holders):
            if m != j:
                product = product * (xm - xj) % PRIME
        denominators.append(product)
    return tuple(numerator * inverse % PRIME for inverse in _inverses(denominators))


def combine(lagrange: Sequence[int], values: Sequence[int]) -> bytes | None:
    """The secret of these shares; None if the result is no 32-byte string, so at least one share was wrong."""
    return _as_secret(sum(weight * value for weight, value in zip(lagrange, values, strict=True)))


def combine_without(points: tuple[int, ...], absent: int, values: Mapping[int, int]) -> bytes | None:
    """Like ``combine`` over ``points`` without ``absent``, from the weights of all of them.

    A dealer holds no share of its own secret. With it among the points, they are the same for every dealer of a
    complete graph, so the quadratic work is done once; leaving x_a out multiplies weight j by (x_a - x_j) / x_a.
    """
    total = sum(
        weight * (absent - x) * values[x] for x, weight in zip(points, weights(points), strict=True) if x != absent
    )
    return _as_secret(total % PRIME * pow(absent, -1, PRIME))


def _as_secret(element: int) -> bytes | None:
    secret = element % PRIME
    return secret.to_bytes(32, "big") if secret < 1 << 256 else None


def _inverses(values: Sequence[int]) -> list[int]:
    """Montgomery's trick: one modular inversion for all of them."""
    running = [1]
    for value in values:
        running.append(running[-1] * value % PRIME)
    inverse, out = pow(running[-1], -1, PRIME), [0] * len(values)
    for index in range(len(values) - 1, -1, -1):
        out[index] = inverse * running[index] % PRIME
        inverse = inverse * values[index] % PRIME
    return out
