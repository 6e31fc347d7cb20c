"""How wide a ring is and how much of it one device may use (docs/protocol.md, "Encoding").

A coordinate is encoded as a whole number q in [0, 2B], where 0 stands for -max_abs and 2B for +max_abs. With
``addends`` devices the sum is at most 2 * B * addends, and ``RingParams`` chooses B so that this fits in ``bits``
bits. Overflow is therefore impossible by construction: parameters for which it is possible cannot be made.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft.errors import ConfigInvalid, Problem

__all__ = ["MAX_LEVELS", "RingParams"]

MAX_LEVELS = 1 << 35
"""2B plus a 17-bit rounding fraction must be exact in a float64's 53 bits."""

MAX_ADDENDS = 1 << 20

NATIVE_BITS = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingParams:
    """The ring of one block.

    Args:
        bits: bits of one lane, 8..64.
        addends: the most devices whose vectors may be summed, 2..2^20.

    Raises:
        ConfigInvalid: out of range, or no room for even one level either side of zero.

    Guarantees:
        The sum of ``addends`` encoded coordinates stays below 2^bits:
        tests/ring/test_params.py::test_a_sum_of_all_addends_at_the_boundary_never_overflows.

    Example:
        >>> RingParams(bits=16, addends=100).levels
        327
    """

    bits: int
    addends: int

    def __post_init__(self) -> None:
        problems = []
        if not 8 <= self.bits <= 64:
            problems.append(Problem(where="bits", expected="8 <= bits <= 64", found=f"bits={self.bits}"))
        if not 2 <= self.addends <= MAX_ADDENDS:
            problems.append(
                Problem(where="addends", expected=f"2 <= addends <= {MAX_ADDENDS}", found=f"addends={self.addends}")
            )
        if not problems and self.levels < 1:
            needed = (2 * self.addends).bit_length()
            problems.append(
                Problem(
                    where="bits",
                    expected=f"bits >= {needed} for {self.addends} addends",
                    found=f"bits={self.bits}",
                    remedy="Widen the ring or ask fewer devices: sums would overflow.",
                )
            )
        if problems:
            raise ConfigInvalid("A ring with these parameters would overflow or waste.", problems=problems)

    @property
    def levels(self) -> int:
        """B: the largest encoded magnitude. 2 * B * addends < 2^bits."""
        return min(((1 << self.bits) - 1) // (2 * self.addends), MAX_LEVELS)

    @property
    def lanes(self) -> int:
        """Coordinates in one ring word."""
        return 1 if self.bits in NATIVE_BITS else 64 // self.bits

    @property
    def word(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned little-endian integer that masks are added to."""
        size = self.bits // 8 if self.bits in NATIVE_BITS else 8
        return np.dtype(f"<u{size}")

    def words(self, length: int) -> int:
        """Ring words for ``length`` coordinates; the last lanes of the last words may be empty."""
        return -(-length // self.lanes)

    def size_bytes(self, length: int) -> int:
        """Bytes that ``length`` coordinates take on the wire."""
        return self.words(length) * self.word.itemsize
