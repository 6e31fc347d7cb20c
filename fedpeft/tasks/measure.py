"""Metrics that are more than a mean: kept as sums over examples, so that they go through the secure sum.

A measure has **lanes**: numbers that each held-out example adds to. A device sends the mean of each lane over its own
examples, times its public weight; the coordinator divides by the sum of the weights and knows the cohort's means alone.
Every metric here is a function of those means. F1, Pearson and Spearman do not change when all lanes are multiplied by
one number, so means are as good as counts, and no count leaves a device.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_CLASSES", "STEPS", "Confusion", "Floats", "LabelSets", "Lanes", "Measure", "class_f1", "f1", "told"]

Floats = npt.NDArray[np.float64]

MOST_CLASSES = 30
"""A confusion matrix of so many classes has 900 lanes, 7.2 kB a device and round; above, there is none."""


STEPS = 1024
"""A mean of counts is a multiple of one over this, rounded up or down at random so that its mean is right: the exact
share of a few examples would tell how many there are. Fine enough for a class with one example in a hundred."""


class Lanes(NamedTuple):
    """Lanes of one kind.

    Args:
        number: how many.
        most: the largest magnitude of a device's mean; a larger one is cut.
        steps: a mean is rounded to a multiple of one over this; 0: it is not.
    """

    number: int
    most: float
    steps: int = 0


class Measure(Protocol):
    """One task's lanes and the metrics that they make."""

    @property
    def lanes(self) -> Sequence[Lanes]:
        """What is summed, in order."""
        ...

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """What a batch adds to the lanes, (lanes,).

        Args:
            scores: the model's outputs, (rows, outputs).
            truth: what stands beside each row, (rows,) or (rows, outputs).
            example: which example of the batch each row is of, ascending.
        """
        ...

    def metrics(self, means: Floats) -> dict[str, float]:
        """Each metric's value from the lanes' means (or sums); those that are not defined are left out."""
        ...


def f1(tp: float, fp: float, fn: float) -> float | None:
    """2 tp / (2 tp + fp + fn); None where nothing was there and nothing was found."""
    whole = 2 * tp + fp + fn
    return 2 * tp / whole if whole > 0 else None


def class_f1(names: Sequence[str], tp: Floats, fp: Floats, fn: Floats) -> dict[str, float]:
    """Macro F1 over the classes that occur, as truth or as an answer, and each one's own as ``f1/NAME``."""
    each = {name: value for name, *sums in zip(names, tp, fp, fn, strict=True) if (value := f1(*sums)) is not None}
    if not each:
        return {}
    own = {f"f1/{name}": value for name, value in each.items()} if len(names) <= MOST_CLASSES else {}
    return {"f1_macro": sum(each.values()) / len(each), **own}


class Confusion:
    """One class an example: the confusion matrix, row by row (truth, answer).

    Args:
        names: of the classes, at most ``MOST_CLASSES``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: each cell is a share of the examples."""
        return (Lanes(len(self.names) ** 2, 1.0, STEPS),)

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``Measure``."""
        classes = len(self.names)
        cells = truth.astype(np.int64) * classes + scores.argmax(1)
        return np.bincount(cells, minlength=classes**2).astype(np.float64)

    def metrics(self, means: Floats) -> dict[str, float]:
        """Macro F1 and each class's."""
        matrix = means.reshape(len(self.names), -1)  # (truth, answer)
        right = matrix.diagonal()
        return class_f1(self.names, right, matrix.sum(0) - right, matrix.sum(1) - right)


class LabelSets:
    """Any number of labels an example: true and false positives and false negatives of each.

    Args:
        names: of the labels.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: each is a share of the examples."""
        return (Lanes(3 * len(self.names), 1.0, STEPS),)

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``Measure``; a label is given where its logit is above 0."""
        found, there = scores > 0, truth > 0  # type: ignore[operator]
        return np.concatenate([(found & there).sum(0), (found & ~there).sum(0), (~found & there).sum(0)]).astype(
            np.float64
        )

    def metrics(self, means: Floats) -> dict[str, float]:
        """Micro F1 over all labels together, macro F1, and each label's."""
        tp, fp, fn = means.reshape(3, -1)
        micro = f1(tp.sum(), fp.sum(), fn.sum())
        return {} if micro is None else {"f1_micro": micro, **class_f1(self.names, tp, fp, fn)}


def told(metrics: Mapping[str, float]) -> str:
    """Those of the whole, without single classes', for one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "/" not in name)
