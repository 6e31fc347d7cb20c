"""A vector for a text, such that texts that belong together are close: search, deduplication, clustering."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import STATES
from fedpeft.tasks.measure import STEPS, Floats, Lanes, Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["GROUP", "TASK", "Retrieval"]

GROUP = 32
"""Held-out examples that are compared with each other, wherever and in whatever batches they are computed: recall among
more texts is lower, so it is a constant. A device with fewer has the easier question."""


class Retrieval:
    """Whether an anchor's nearest text is its own, among those of ``GROUP`` examples; and how close that is."""

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: the share of examples whose own text is found, then both cosines."""
        return (Lanes(1, 1.0, STEPS), Lanes(2, 1.0))

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``Measure``.

        Args:
            scores: cosines of each anchor with its own text and with the nearest other one, (n, 2); -1 without others.
            truth: not read: the own text comes first.
            example: which example of the batch each row is of.
        """
        found = float((scores[:, 0] > scores[:, 1]).sum())
        return np.concatenate([[found], scores.astype(np.float64).sum(0)])

    def metrics(self, means: Floats) -> dict[str, float]:
        """``recall_at_1``, and both mean cosines."""
        names = ("recall_at_1", "cosine_own", "cosine_nearest_other")
        return {name: float(value) for name, value in zip(names, means, strict=True)}


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return Retrieval()


TASK = TaskRecord(
    name="embeddings",
    help="a vector for a text, close to those of texts that belong to it",
    form=STATES,
    conventions=(Convention.ANCHOR_POSITIVE_NEGATIVE, Convention.ANCHOR_POSITIVE),
    target=Target.CLOSER,
    named_outputs=False,
    counted="examples",
    accuracy=False,
    measure=_measure,
    metrics=("loss", "recall_at_1"),
    best="loss",
    compared="recall_at_1",
)
