"""When a submitted run starts: at once, at a time, or again and again.

A run that repeats queues the next one as it begins, so at most one waits. A start that was missed, because the
coordinator was down or had no place, happens once, as soon as it can; the next one is at the next time of the schedule.
Each repetition has a seed of its own: two runs that begin alike over nearly the same devices differ in what one of them
gave. That helps where batches are drawn, and not where a sum is a function of the data alone, as class means are
(docs/threat-model.md, "Differencing").
"""

import math
import tomllib

import tomli_w

from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid

__all__ = ["LATEST", "LONGEST_EVERY_S", "SHORTEST_EVERY_S", "expect_schedule", "next_start", "with_another_seed"]

SHORTEST_EVERY_S, LONGEST_EVERY_S = 60, 366 * 86_400
LATEST = 2**37
"""Unix seconds, in the year 6325: a time that every date has room for, repetitions included."""


def expect_schedule(start_at: int, every_s: int) -> None:
    """Refuses times that cannot be meant.

    Args:
        start_at: Unix seconds; 0: at once.
        every_s: from one start to the next; 0: once.

    Raises:
        ConfigInvalid: out of range.
    """
    if not 0 <= start_at <= LATEST:
        raise ConfigInvalid(f"Expected a start in 0..{LATEST} Unix seconds, found {start_at}.")
    if every_s and not SHORTEST_EVERY_S <= every_s <= LONGEST_EVERY_S:
        raise ConfigInvalid(
            f"Expected repetitions every {SHORTEST_EVERY_S} s to {LONGEST_EVERY_S // 86_400} days, found {every_s} s."
        )


def next_start(start_at: int, every_s: int, now: float) -> int:
    """The first time of a schedule after now.

    Example:
        >>> [next_start(1000, 60, now) for now in (900, 1000, 1059, 1060, 5000)]
        [1060, 1060, 1060, 1120, 5020]
    """
    return start_at + every_s * max(1, math.floor((now - start_at) / every_s) + 1)


def with_another_seed(text: str) -> str:
    """The same run.toml with a drawn seed, another than its own."""
    document = tomllib.loads(text)
    before = document["run"].get("seed")
    while document["run"].get("seed") == before:
        document["run"]["seed"] = int.from_bytes(os_entropy(3))
    return tomli_w.dumps(document)
