"""Real vectors as ring elements whose sum cannot overflow. numpy only; no secrets, no network."""

from fedpeft.ring.encoding import BlockEncoding, InputRefused, RoundingBits, SumOutOfRange, SumRange, bits_from
from fedpeft.ring.params import MAX_LEVELS, RingParams

__all__ = [
    "MAX_LEVELS",
    "BlockEncoding",
    "InputRefused",
    "RingParams",
    "RoundingBits",
    "SumOutOfRange",
    "SumRange",
    "bits_from",
]
