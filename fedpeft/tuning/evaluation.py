"""What evaluating examples gives: sums, of which metrics are made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums, so that evaluations of several devices add up.

    Args:
        loss_sum: cross entropy in nats, summed over the predictions.
        correct: how many top-1 predictions are right.
        examples: how many predictions: examples of a classifier, tagged words, labelled tokens of a language model.
        rows: how many examples they are of.
        lanes: what the examples add to the lanes of the task's measure, each times its weight, (lanes,); None without a
            measure.
        lane_weight: the weights of those examples together; each is 1 unless others were given.
    """

    loss_sum: float
    correct: int
    examples: int
    rows: int = 0
    lanes: npt.NDArray[np.float64] | None = None
    lane_weight: float = 0.0

    @classmethod
    def joined(cls, parts: "Sequence[Evaluation]") -> "Evaluation":
        """Of all these examples together."""
        lanes = [part.lanes for part in parts if part.lanes is not None]
        return cls(
            loss_sum=sum(part.loss_sum for part in parts),
            correct=sum(part.correct for part in parts),
            examples=sum(part.examples for part in parts),
            rows=sum(part.rows for part in parts),
            lanes=np.sum(lanes, axis=0) if lanes else None,
            lane_weight=sum(part.lane_weight for part in parts),
        )

    @property
    def lane_means(self) -> npt.NDArray[np.float64] | None:
        """Of each lane over the examples, (lanes,); None without a measure or examples."""
        return None if self.lanes is None or self.lane_weight <= 0 else self.lanes / self.lane_weight
