"""The mask kernel: adds and subtracts AES keystreams in place (docs/protocol.md, "Masks").

A mask is the AES-256-CTR keystream of a 32-byte key, read as the ring's little-endian words. It is cut into segments
of 16 MiB, each with its own counter prefix, so any part can be computed on its own. The kernel walks through the
vector in pieces that stay in the second-level cache and applies every mask to a piece before it goes on: the cost
is the keystream and one addition, nothing else. Nothing is allocated per mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.ring import RoundingBits
from fedpeft.secagg.primitives import Backend, Secret, fastest_backend, stream

__all__ = ["PIECE_BYTES", "SEGMENT_BYTES", "Mask", "apply_masks", "noise_bytes", "rounding_bits"]

SEGMENT_BYTES = 1 << 24
PIECE_BYTES = 1 << 17
"""Zeros, keystream and the piece of the vector together stay inside 512 KiB of second-level cache."""

BATCH = 64
"""Cipher contexts open at once; more would push the pieces out of the cache."""


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask: its key and whether it is added or subtracted."""

    key: Secret
    add: bool


def apply_masks(words: npt.NDArray[np.unsignedinteger], masks: Sequence[Mask], backend: Backend | None = None) -> None:
    """Applies every mask to ``words`` in place.

    Args:
        words: (words,) contiguous ring words of any unsigned width.
        masks: applied in this order; the order does not change the result.
        backend: for tests; by default the faster one. The result is the same.

    Guarantees:
        The same words whatever the back end, the cache piece or the batch:
        tests/secagg/test_masks.py::test_both_back_ends_and_every_piece_size_give_the_same_words.
    """
    chosen = backend or fastest_backend()
    for first in range(0, len(masks), BATCH):
        for segment in range(-(-words.nbytes // SEGMENT_BYTES)):
            _apply_segment(words, masks[first : first + BATCH], segment, chosen)


def _apply_segment(
    words: npt.NDArray[np.unsignedinteger], masks: Sequence[Mask], segment: int, backend: Backend
) -> None:
    fills = [(stream(mask.key.value, segment, backend), np.add if mask.add else np.subtract) for mask in masks]
    size = words.dtype.itemsize
    start, stop = segment * SEGMENT_BYTES, min((segment + 1) * SEGMENT_BYTES, words.nbytes)
    zeros, keystream = _zeros(), np.empty(PIECE_BYTES + 16, np.uint8)
    out = memoryview(keystream.data)
    for offset in range(start, stop, PIECE_BYTES):
        piece = words[offset // size : min(offset + PIECE_BYTES, stop) // size]
        mask_words = keystream[: piece.nbytes].view(words.dtype)
        source = zeros[: piece.nbytes]
        for fill, combine in fills:
            fill(source, out)
            combine(piece, mask_words, out=piece)


def rounding_bits(key: bytes) -> RoundingBits:
    """Rounding randomness as fast as the masks: the keystream of a key that is used for nothing else."""
    fill = stream(key, 0, fastest_backend())
    zeros, keystream = _zeros(), np.empty(PIECE_BYTES + 16, np.uint8)
    out = memoryview(keystream.data)

    def draw(count: int) -> npt.NDArray[np.uint16]:
        fill(zeros[: 2 * count], out)
        return keystream[: 2 * count].view("<u2")

    return draw


def noise_bytes(key: bytes) -> Entropy:
    """Randomness for privacy noise, as fast as the masks: the keystream of a key that is used for nothing else."""
    fill = stream(key, 0, fastest_backend())
    zeros = _zeros()

    def draw(size: int) -> bytes:
        out = memoryview(bytearray(size + 16))
        for start in range(0, size, PIECE_BYTES):
            fill(zeros[: min(PIECE_BYTES, size - start)], out[start:])
        return bytes(out[:size])

    return draw


@cache
def _zeros() -> memoryview:
    return memoryview(bytes(PIECE_BYTES))
