"""Randomness as an argument.

Keys, shares and privacy noise take ``os_entropy`` and nothing else. Sampling, initialisation and the
simulation's stochastic rounding take numbers derived from the run's seed, so that a run can be repeated.
"""

import hashlib
import os
from collections.abc import Callable

import numpy as np

__all__ = ["Entropy", "derive_seed", "generator", "os_entropy", "seeded_entropy"]

Entropy = Callable[[int], bytes]
"""Given n, returns n fresh random bytes."""


def os_entropy(size: int) -> bytes:
    """``size`` bytes from the operating system's CSPRNG."""
    return os.urandom(size)


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one purpose: SHA-256 over the run's seed and the labels, length-prefixed.

    Distinct label tuples give independent seeds; the same tuple always gives the same one, whatever the
    machine, thread or order of calls.

    Example:
        >>> derive_seed(0, "batches", "united", 3) == derive_seed(0, "batches", "united", 3)
        True
        >>> derive_seed(0, "ab", "c") == derive_seed(0, "a", "bc")
        False
    """
    digest = hashlib.sha256(b"fedpeft/1 seed" + seed.to_bytes(8, "little"))
    for label in labels:
        encoded = str(label).encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator for one purpose (see ``derive_seed``)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *labels)))


def seeded_entropy(seed: int, *labels: str | int) -> Entropy:
    """Repeatable bytes for tests and for the simulation's rounding. Never for keys, shares or noise.

    SHAKE256 over the derived seed and a counter; not thread-safe, one instance a purpose.
    """
    key = derive_seed(seed, *labels).to_bytes(8, "little")
    counter = 0

    def draw(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(key + counter.to_bytes(8, "little")).digest(size)

    return draw
