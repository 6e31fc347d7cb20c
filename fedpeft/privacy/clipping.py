"""The L2 clip of everything that one device contributes to a round, all blocks together.

The sensitivity of a sum is the norm of one client's *concatenated* contribution: clipping 24 tensors one by one to C
makes it C * sqrt(24), and an epsilon of 4.4 becomes 32. So there is one norm, over
all blocks, and only ``clip`` makes a ``Clipped``. Rounding to a grid may lengthen a vector by half a step a
coordinate; ``rounding_allowance`` is subtracted from C before clipping, never added to it afterwards.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.ring import InputRefused

__all__ = ["Clipped", "clip", "l2_norm", "rounding_allowance"]

Vectors = Mapping[BlockId, npt.NDArray[np.float32]]

FLOAT32_MARGIN = 1.0 - 2.0**-22
"""The clipped vector is stored as float32, which may lengthen it by a factor of 1 + 2^-24."""

PIECE = 1 << 15
"""Coordinates worked on at once: the temporaries stay in the second-level cache."""

_ONLY_CLIP = object()


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """A contribution whose concatenation has an L2 norm of at most ``l2_norm_bound``. Only ``clip`` makes one.

    Args:
        vectors: for each block its vector, (P,) float32.
        l2_norm_bound: what the norm was clipped to.
        scale: what the vectors were multiplied by; 1 if they were short enough. Says something about the data.
        token: proof of origin.
    """

    vectors: Vectors
    l2_norm_bound: float
    scale: float
    token: object

    def __post_init__(self) -> None:
        if self.token is not _ONLY_CLIP:
            raise TypeError("Expected a contribution made by clip(), found one made by hand; call clip().")


def clip(vectors: Vectors, *, l2_clip_norm: float, allowance: float = 0.0) -> Clipped:
    """Shortens a contribution to ``l2_clip_norm - allowance``, keeping its direction.

    Args:
        vectors: all that this device contributes, block by block; any empty or zero vector is fine.
        l2_clip_norm: C > 0.
        allowance: what later rounding may add to the norm, 0 <= allowance < C.

    Raises:
        InputRefused: NaN or infinity.
        ValueError: C or the allowance is out of range.

    Guarantees:
        The concatenation's norm is at most C - allowance, whatever the input:
        tests/privacy/test_clipping.py::test_the_concatenated_norm_never_exceeds_the_bound.
        Two contributions of neighbouring runs differ by at most C after rounding:
        test_rounding_after_the_clip_stays_within_the_clip_norm.

    Edge cases: all zeros stay zeros; denormal and huge (1e38) values are scaled without overflow; a short vector is
    returned bit for bit.
    """
    if not (0 < l2_clip_norm < math.inf and 0 <= allowance < l2_clip_norm):
        raise ValueError(f"Expected 0 <= allowance < l2_clip_norm, found {allowance} and {l2_clip_norm}.")
    norm = l2_norm(vectors)
    if not math.isfinite(norm):
        raise InputRefused("Expected finite numbers, found NaN or inf; nothing was contributed.")
    bound = (l2_clip_norm - allowance) * FLOAT32_MARGIN
    if norm <= bound:
        return Clipped(dict(vectors), l2_clip_norm - allowance, 1.0, _ONLY_CLIP)
    scale = np.float32(bound / norm)
    if float(scale) > bound / norm:  # as Python's: numpy would round the other side to float32 as well
        scale = np.nextafter(scale, np.float32(0))
    shortened = {key: vector * scale for key, vector in vectors.items()}
    return Clipped(shortened, l2_clip_norm - allowance, float(scale), _ONLY_CLIP)


def l2_norm(vectors: Vectors) -> float:
    """The norm of the concatenation, in float64; float32 values cannot overflow it."""
    return math.sqrt(math.fsum(square for vector in vectors.values() for square in _squares(vector)))


def _squares(vector: npt.NDArray[np.float32]) -> Iterator[float]:
    """The squared norm of each piece, in float64."""
    for start in range(0, len(vector), PIECE):
        piece = vector[start : start + PIECE].astype(np.float64)
        yield float(np.dot(piece, piece))


def rounding_allowance(step: float, parameters: int) -> float:
    """The most by which rounding to multiples of ``step`` lengthens a vector of so many coordinates."""
    return 0.5 * step * math.sqrt(parameters)
