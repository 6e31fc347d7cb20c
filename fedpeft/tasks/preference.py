"""Which of two answers people prefer, or whether they want one: a language model trained by DPO or KTO."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.tasks.conventions import Convention
from fedpeft.tasks.form import TEXT
from fedpeft.tasks.measure import STEPS, Floats, Lanes, Measure
from fedpeft.tasks.record import Range, Target, TaskRecord

__all__ = ["LARGEST_REWARD", "TASK", "Rewards"]

LARGEST_REWARD = 32.0
"""A reward counts up to this magnitude; the loss of a margin of 32 is 1e-14."""


class Rewards:
    """The implicit rewards of answers: beta times how much likelier the adapter makes them than the base does."""

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: rewards of preferred and of other answers, then the shares of examples that have one."""
        return (Lanes(2, LARGEST_REWARD), Lanes(2, 1.0, STEPS))

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``Measure``.

        Args:
            scores: the rewards of the preferred and of the other answer, (n, 2).
            truth: which of the two there are, (n, 2) bool; without pairs one of them.
            example: which example of the batch each row is of.
        """
        there = truth.astype(np.float64)
        rewards = np.clip(scores.astype(np.float64), -LARGEST_REWARD, LARGEST_REWARD) * there
        return np.concatenate([rewards.sum(0), there.sum(0)])

    def metrics(self, means: Floats) -> dict[str, float]:
        """Both mean rewards, and the margin between them; each where there is such an answer."""
        names = ("reward_chosen", "reward_rejected")
        found = {name: float(means[i] / means[2 + i]) for i, name in enumerate(names) if means[2 + i] > 0}
        return {"margin": found[names[0]] - found[names[1]], **found} if len(found) == len(names) else found


def _measure(outputs: tuple[str, ...], scale: Range | None) -> Measure | None:
    return Rewards()


TASK = TaskRecord(
    name="preference",
    help="which of two answers is preferred (DPO), or whether an answer is wanted (KTO)",
    form=TEXT,
    conventions=(
        Convention.PROMPT_CHOSEN_REJECTED,
        Convention.CHOSEN_REJECTED,
        Convention.PROMPT_COMPLETION_LABEL,
    ),
    target=Target.PREFERENCE,
    named_outputs=False,
    counted="examples",
    measure=_measure,
    metrics=("loss", "accuracy", "margin"),
    best="loss",
    compared="accuracy",
)
