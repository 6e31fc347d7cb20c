"""Pearson's and Spearman's correlation of answers with the truth, from sums over examples.

Pearson's follows from five moments. Spearman's needs ranks over all examples, which no device knows; what can be summed
is how many examples fall into each cell of a grid of fixed, public bins. The ranks of binned values, with ties at their
mean rank, follow from the grid, so what is reported is exactly Spearman's of the values rounded to ``BINS`` steps: on
STS-B's scale of 0 to 5, steps of 0.2 (tests/tasks/test_measures.py says how far that is from the unrounded).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedpeft.tasks.measure import STEPS, Floats, Lanes

__all__ = ["BINS", "OUTSIDE", "Correlation"]

BINS = 25
"""Of the answers and of the truth each: 625 lanes, 5 kB a device and round."""

OUTSIDE = 2.0
"""An answer counts up to so many half widths of the range from its middle; one further off is cut to that."""


class Correlation:
    """One number an example.

    Args:
        low, high: the range of the truth; public.
    """

    def __init__(self, low: float, high: float) -> None:
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    @property
    def lanes(self) -> Sequence[Lanes]:
        """See ``Measure``: means of 1, y, p, y^2, p^2 and y p in half widths of the range, then shares of the grid."""
        moments = (1.0, 1.0, OUTSIDE, 1.0, OUTSIDE**2, OUTSIDE)
        return (*(Lanes(1, most) for most in moments), Lanes(BINS**2, 1.0, STEPS))

    def tally(self, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.generic], example: Sequence[int]) -> Floats:
        """See ``fedpeft.tasks.measure.Measure``."""
        y = np.clip((truth.astype(np.float64) - self.middle) / self.half, -1.0, 1.0)
        p = np.clip((scores[:, 0].astype(np.float64) - self.middle) / self.half, -OUTSIDE, OUTSIDE)
        moments = np.array([len(y), y.sum(), p.sum(), (y * y).sum(), (p * p).sum(), (y * p).sum()])
        cells = _bin(y) * BINS + _bin(p)
        return np.concatenate([moments, np.bincount(cells, minlength=BINS**2)])

    def metrics(self, means: Floats) -> dict[str, float]:
        """``pearson`` and ``spearman``; without examples that differ there are none."""
        grid = np.maximum(means[6:], 0.0).reshape(BINS, BINS)  # (truth, answer)
        evaluated, count, found = float(means[0]), float(grid.sum()), dict[str, float]()
        if min(evaluated, count) <= 0:
            return found
        y, p, yy, pp, yp = means[1:6] / evaluated
        found |= _named("pearson", yp - y * p, yy - y * y, pp - p * p)
        joint, of_y, of_p = grid / count, grid.sum(1) / count, grid.sum(0) / count
        ranks_y, ranks_p = _mid_ranks(of_y), _mid_ranks(of_p)
        covariance = float(ranks_y @ joint @ ranks_p)
        return found | _named("spearman", covariance, float(of_y @ ranks_y**2), float(of_p @ ranks_p**2))


def _bin(value: Floats) -> npt.NDArray[np.int64]:
    """Of values in half widths; what is outside of the range is in its last bin."""
    return np.rint((np.clip(value, -1.0, 1.0) + 1.0) / 2 * (BINS - 1)).astype(np.int64)


def _mid_ranks(shares: Floats) -> Floats:
    """The mean rank of each bin's examples, from shares that sum to 1, with mean 0."""
    ranks: Floats = np.cumsum(shares) - shares / 2 - 0.5
    return ranks


def _named(name: str, covariance: float, one: float, other: float) -> dict[str, float]:
    """Nothing where a side does not vary beyond rounding."""
    if min(one, other) <= 1e-12:
        return {}
    return {name: float(np.clip(covariance / np.sqrt(one * other), -1.0, 1.0))}
