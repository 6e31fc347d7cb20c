"""What a round measures, as one more block of the secure sum.

Weights, counts and losses go through the ring like the deltas, so the coordinator learns the cohort's
totals and nothing about one device. Evaluation is of the state that the round *starts* from: it costs no
exchange of its own.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.ring import SumRange

__all__ = [
    "METRICS",
    "METRIC_BITS",
    "METRIC_RANGES",
    "NOTHING_MEASURED",
    "OWNER_WEIGHTS",
    "Contribution",
    "Totals",
    "in_bucket",
    "metrics_vector",
    "totals",
]

METRICS = BlockId("metrics")

OWNER_WEIGHTS = BlockId("owner-weights")
"""One lane for each block of the round: the sum of its owners' weights, for rules that divide by it. Every device
owns this block and says 0 where it does not own the other."""

COUNT_LIMIT = 2.0**24
"""Largest count, and largest summed loss, that one device reports; larger ones are clipped to it."""

METRIC_RANGES: tuple[SumRange, ...] = (
    SumRange(length=1, max_abs=1.0),
    SumRange(length=1, max_abs=COUNT_LIMIT),
    SumRange(length=1, max_abs=COUNT_LIMIT, exact=True),
    SumRange(length=1, max_abs=COUNT_LIMIT),
    SumRange(length=1, max_abs=COUNT_LIMIT, exact=True),
    SumRange(length=1, max_abs=COUNT_LIMIT, exact=True),
)
"""The lanes of the metrics block, in the order of ``Contribution``'s fields; counts are exact."""

METRIC_BITS = 64
"""Ring width of the metrics block: six lanes, so precision costs nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One device's numbers, before the secure sum. They never leave the device in the clear.

    Args:
        weight: the weight of its delta, in [0, 1].
        trained_loss: training loss summed over the examples it trained on.
        trained: examples (tokens, for a causal LM) that it trained on.
        evaluated_loss: loss of the received state summed over its held-out examples (tokens).
        correct: how many of them the received state got right.
        evaluated: how many of them there were.
    """

    weight: float
    trained_loss: float
    trained: float
    evaluated_loss: float
    correct: float
    evaluated: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The cohort's sums, as decoded from the ring; None where nothing was counted."""

    weight: float
    trained: int
    evaluated: int
    train_loss: float | None
    loss: float | None
    accuracy: float | None


NOTHING_MEASURED = Totals(weight=0.0, trained=0, evaluated=0, train_loss=None, loss=None, accuracy=None)
"""A round under client-level privacy: its metrics would be releases, and are not collected."""


def in_bucket(block_id: BlockId, bucket: int) -> BlockId:
    """The name under which one bucket sums a block; bucket 0 is the whole cohort."""
    return BlockId(f"{block_id}@{bucket}") if bucket else block_id


def metrics_vector(contribution: Contribution) -> npt.NDArray[np.float32]:
    """The metrics block of one device, (6,) float32, clipped to ``METRIC_RANGES``."""
    lanes = np.array(
        [
            contribution.weight,
            contribution.trained_loss,
            contribution.trained,
            contribution.evaluated_loss,
            contribution.correct,
            contribution.evaluated,
        ]
    )
    limits = np.array([lane.max_abs for lane in METRIC_RANGES])
    clipped: npt.NDArray[np.float32] = np.clip(lanes, 0.0, limits).astype(np.float32)
    return clipped


def totals(summed: npt.NDArray[np.float64]) -> Totals:
    """Means and counts from the sum of the metrics blocks, (6,)."""
    weight, trained_loss, trained, evaluated_loss, correct, evaluated = (float(lane) for lane in summed)
    has_trained, has_evaluated = round(trained) > 0, round(evaluated) > 0
    return Totals(
        weight=weight,
        trained=round(trained),
        evaluated=round(evaluated),
        train_loss=trained_loss / trained if has_trained else None,
        loss=evaluated_loss / evaluated if has_evaluated else None,
        accuracy=correct / evaluated if has_evaluated else None,
    )
