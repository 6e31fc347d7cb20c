"""The randomness of a device's measurements: bytes that are drawn once and kept.

A number that does not move, such as the share of a class among the held-out examples, or the accuracy of a state that
hardly changes, is solved for one device from sums over cohorts that differ. If it were rounded by fresh draws, the mean
over the rounds would be the exact share, and of 5/7 the denominator is a count (docs/adr/0032-lasting-draws.md). So the
same value is rounded alike in every round and run, and each held-out example has a weight of its own that lasts.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.entropy import Entropy
from fedpeft.round.device.records import DRAWS
from fedpeft.round.local import DeviceStore

__all__ = ["LIGHTEST", "example_weights", "expanded", "lasting_draws"]

DRAW_BYTES = 32

LIGHTEST = 0.5
"""Weights are uniform between this and two minus this: their mean is as good as that of 0.92 as many examples."""


def lasting_draws(store: DeviceStore, entropy: Entropy) -> bytes:
    """This device's 32 bytes; drawn and kept durably when they are first asked for.

    Args:
        entropy: the operating system's; seeded in simulation only.
    """
    kept = store.read(DRAWS)
    if kept is None or len(kept) != DRAW_BYTES:
        kept = entropy(DRAW_BYTES)
        store.write(DRAWS, kept)
    return kept


def expanded(draws: bytes) -> Entropy:
    """As many bytes as are asked for, and others at each call; the same ones from the beginning."""
    counter = 0

    def draw(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(b"fedpeft/1 rounding" + draws + counter.to_bytes(8, "big")).digest(size)

    return draw


def example_weights(draws: bytes, examples: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float64]:
    """The weight of each example in the lanes of a task's measure, (n,), in [0.5, 1.5).

    Without them the share of a class on one device is a fraction of whole numbers, whose denominator is a count.

    Args:
        draws: ``lasting_draws``; empty: all weigh 1.
        examples: the tokens of each.
    """
    if not draws:
        return np.ones(len(examples))
    seeds = [hashlib.sha256(b"fedpeft/1 weight" + draws + tokens.tobytes()).digest()[:8] for tokens in examples]
    return LIGHTEST + 2 * (1 - LIGHTEST) * (np.frombuffer(b"".join(seeds), "<u8") / 2.0**64)
