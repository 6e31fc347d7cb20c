"""Fixed point with stochastic rounding, packed into ring words (docs/protocol.md, "Encoding").

    q = floor(s * clip(x, -C, C) + u) + B,   s = B / C,   u uniform in (0, 1)

Works through the vector in pieces that stay in the cache, in place. Source: stochastic rounding as in QSGD
(Alistarh et al. 2017) with a fixed step; packing in lanes of 64-bit words. Lane j of word k holds
coordinate j * words + k. NaN and infinity are refused, never encoded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.errors import ConfigInvalid, Problem, SpecMismatch
from fedpeft.ring.params import RingParams

__all__ = ["BlockEncoding", "InputRefused", "RoundingBits", "SumOutOfRange", "SumRange", "bits_from"]

PIECE = 1 << 14
"""Coordinates worked on at once: 128 KiB of float64, twice, stay in the second-level cache."""

CLIP_MARGIN = 1 - 2.0**-20
"""Below this share of the range, rounding of the product cannot reach the last level, so clipping would do nothing."""

RANDOM_BITS = 16
HALF_DRAW = 2.0 ** -(RANDOM_BITS + 1)
MAX_ABS_LIMIT = 2.0**100

RoundingBits = Callable[[int], npt.NDArray[np.uint16]]
"""Given m, returns m uniform 16-bit numbers; the array may be reused by the next call."""


class InputRefused(SpecMismatch):
    """A vector that cannot be encoded: wrong length or dtype, NaN, inf, or a count outside its range."""


class SumOutOfRange(SpecMismatch):
    """A sum that no inputs within their ranges make: somebody added words of another kind, or it is still masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRange:
    """Consecutive coordinates with one clipping range, usually one tensor.

    Args:
        length: how many coordinates, 1 or more.
        max_abs: the clipping range C > 0: each coordinate is clipped to [-C, C] before encoding.
        exact: a whole-number lane (counts): step 1, no rounding, and a value outside the range is refused.
    """

    length: int
    max_abs: float
    exact: bool = False


def bits_from(entropy: Entropy) -> RoundingBits:
    """Rounding bits straight from a source of bytes; slow, for tests and small vectors."""

    def draw(count: int) -> npt.NDArray[np.uint16]:
        return np.frombuffer(entropy(2 * count), np.dtype("<u2"))

    return draw


@dataclass(frozen=True, slots=True)
class _Piece:
    """Coordinates start..stop, all in one range and one lane, and the words that hold them."""

    start: int
    stop: int
    part: SumRange
    word: int
    shift: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEncoding:
    """The encoding of one block: P coordinates in ranges, each on its own scale, in one ring.

    Args:
        params: the ring.
        ranges: consecutive; their lengths add up to P.

    Raises:
        ConfigInvalid: an empty or non-finite range, or an exact range that the ring cannot hold.

    Guarantees:
        With step = max_abs / levels (1 for exact ranges), for the sum over n devices of the clipped inputs:
        the error of each coordinate is below n * step, its expectation below n * step * 2^-17, and its rms at most
        step * sqrt(n) / 2: tests/ring/test_encoding.py::test_the_error_of_a_sum_stays_within_the_stated_bound.
        Exact ranges have no error: test_counts_are_summed_exactly.
    """

    params: RingParams
    ranges: tuple[SumRange, ...]

    def __post_init__(self) -> None:
        problems = [problem for index, part in enumerate(self.ranges) for problem in self._problems(index, part)]
        if not self.ranges:
            problems.append(Problem(where="ranges", expected="at least one range", found="none"))
        if problems:
            raise ConfigInvalid("This block cannot be encoded.", problems=problems)

    def _problems(self, index: int, part: SumRange) -> Iterator[Problem]:
        where = f"ranges[{index}]"
        if part.length < 1:
            yield Problem(where=where, expected="length >= 1", found=f"length={part.length}")
        if not 0 < part.max_abs < MAX_ABS_LIMIT:
            yield Problem(where=where, expected="0 < max_abs < 2^100", found=f"max_abs={part.max_abs}")
        elif part.exact and part.max_abs > self.params.levels:
            yield Problem(
                where=where,
                expected=f"max_abs <= {self.params.levels}, the levels of {self.params.bits} bits "
                f"for {self.params.addends} addends",
                found=f"max_abs={part.max_abs}",
                remedy="Widen the ring of this block or lower the largest count.",
            )

    @property
    def length(self) -> int:
        """P: coordinates of the vector."""
        return sum(part.length for part in self.ranges)

    @property
    def words(self) -> int:
        """Ring words of one encoded vector."""
        return self.params.words(self.length)

    @property
    def size_bytes(self) -> int:
        """Bytes of one encoded vector."""
        return self.params.size_bytes(self.length)

    def zeros(self) -> npt.NDArray[np.unsignedinteger]:
        """An empty sum.  # (words,)"""
        return np.zeros(self.words, self.params.word)

    def scale(self, part: SumRange) -> float:
        """Levels per unit: 1 / step."""
        return 1.0 if part.exact else self.params.levels / part.max_abs

    def encode(self, vector: npt.NDArray[np.floating], bits: RoundingBits) -> npt.NDArray[np.unsignedinteger]:
        """One device's vector as ring words.

        Args:
            vector: (P,) float32 or float64, finite. Exact ranges: whole numbers within their range.
            bits: rounding randomness; 16 bits per coordinate that is not exact.

        Returns:
            (words,) of the ring's word; each lane in [0, 2 * levels].

        Raises:
            InputRefused: wrong shape or dtype, NaN, inf, or a count that is not whole or out of range.
        """
        self._check(vector)
        offset = float(self.params.levels)
        words = self.zeros() if self.params.lanes > 1 else np.empty(self.words, self.params.word)
        # Safe: 2 * levels <= 2^(bits-1) because addends >= 2, so the signed view cannot overflow.
        signed = words.view(np.dtype(f"<i{self.params.word.itemsize}"))
        scaled, draws = np.empty(PIECE), np.empty(PIECE)
        for piece in self._pieces():
            x, t, r = vector[piece.start : piece.stop], scaled[: piece.stop - piece.start], draws
            largest = max(float(x.max()), -float(x.min()))  # NaN in x makes both reductions NaN
            if not largest < np.inf:
                raise InputRefused(f"Expected finite numbers, found NaN or inf in {piece.start}..{piece.stop - 1}.")
            if piece.part.exact:
                _check_counts(x, piece)
                np.add(x, offset, out=t, dtype=np.float64)
            else:
                np.multiply(x, self.scale(piece.part), out=t, dtype=np.float64)
                if largest > piece.part.max_abs * CLIP_MARGIN:
                    np.clip(t, -offset, offset, out=t)
                np.multiply(bits(len(t)), 2.0**-RANDOM_BITS, out=r[: len(t)])
                t += r[: len(t)]
                t += offset + HALF_DRAW  # positive, and exact in 53 bits: truncation below is floor
            at = slice(piece.word, piece.word + len(t))
            if self.params.lanes == 1:
                np.copyto(signed[at], t, casting="unsafe")
            else:
                words[at] |= t.astype(np.uint64) << np.uint64(piece.shift)
        return words

    def decode(self, words: npt.NDArray[np.unsignedinteger], addends: int) -> npt.NDArray[np.float64]:
        """The sum that these words hold.

        Args:
            words: (words,) sum of ``addends`` encoded vectors, every lane below 2^bits.
            addends: exactly how many vectors were added.

        Returns:
            (P,) float64.

        Raises:
            InputRefused: words of another shape, or more addends than the ring is made for.
            SumOutOfRange: a coordinate beyond ``addends`` times its range. Words that lie are noticed where the ring
                has room above honest sums: counts, and sums of fewer vectors than the ring is made for.
        """
        if words.shape != (self.words,) or words.dtype != self.params.word or addends > self.params.addends:
            raise InputRefused(
                f"Expected {self.words} words of {self.params.word} and at most {self.params.addends} addends, "
                f"found {words.shape} of {words.dtype} and {addends}."
            )
        total = np.empty(self.length)
        mask = np.uint64((1 << self.params.bits) - 1)
        zero = np.int64(addends * self.params.levels)
        for piece in self._pieces():
            t = total[piece.start : piece.stop]
            lane = words[piece.word : piece.word + len(t)].astype(np.uint64)
            lane >>= np.uint64(piece.shift)
            lane &= mask
            # Safe: a lane is at most 2 * levels * addends <= 2^56, so it fits a signed 64-bit number.
            np.subtract(lane.view(np.int64), zero, out=t, dtype=np.int64, casting="unsafe")
            most = addends * (piece.part.max_abs if piece.part.exact else self.params.levels)
            if len(t) and max(t.max(), -t.min()) > most:
                raise SumOutOfRange(
                    f"Expected a sum of {addends} inputs within {addends} times {piece.part.max_abs:g} in coordinates "
                    f"{piece.start}..{piece.stop - 1}, found a larger one: a device sent what no input encodes to."
                )
            t /= self.scale(piece.part)
        return total

    def _check(self, vector: npt.NDArray[np.floating]) -> None:
        if not isinstance(vector, np.ndarray) or vector.dtype not in (np.float32, np.float64):
            raise InputRefused(f"Expected float32 or float64, found {getattr(vector, 'dtype', type(vector).__name__)}.")
        if vector.shape != (self.length,):
            raise InputRefused(f"Expected a vector of {self.length} coordinates, found shape {vector.shape}.")

    def _pieces(self) -> Iterator[_Piece]:
        """The vector cut at every range border, lane border and cache block."""
        start, words = 0, self.words
        for part in self.ranges:
            end = start + part.length
            while start < end:
                lane, word = divmod(start, words)
                stop = min(end, start + PIECE, (lane + 1) * words)
                yield _Piece(start, stop, part, word, lane * self.params.bits)
                start = stop


def _check_counts(x: npt.NDArray[np.floating], piece: _Piece) -> None:
    if (np.rint(x) != x).any() or (np.abs(x) > piece.part.max_abs).any():
        raise InputRefused(
            f"Expected whole numbers of at most {piece.part.max_abs:g} in {piece.start}..{piece.stop - 1}, "
            "found a fraction or a larger count."
        )
