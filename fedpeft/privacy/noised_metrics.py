"""Metrics under client-level privacy: accuracy and losses as four more noised coordinates of the same secure sum.

With ``[privacy] metrics = "noised"`` each device adds one number for whether it had held-out examples, and for its own
accuracy, loss and training loss, each a share t in [-1, 1] of a weight b: losses are cut at ``LOSS_LIMIT``. So a client
moves the sum by at most S = sqrt(C^2 + w^2 + 4 b^2), w the weight of adaptive clipping's bit; the noise is z S on all
coordinates, and z is all that the accountant needs: what the metrics cost is the noise that they add to the deltas,
S / C. b is an eighth of C, which makes that 3 %. Every device counts alike, however many examples it has; which is a
count, and is not collected.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId

__all__ = [
    "LOSS_LIMIT",
    "METRIC_LANES",
    "NOISED_METRICS",
    "NoisedMetrics",
    "metric_lanes",
    "metric_noise",
    "metric_weight",
    "read_lanes",
]

NOISED_METRICS = BlockId("noised-metrics")
"""The block of the sum that holds them, owned by everybody."""

METRIC_LANES = 4

LOSS_LIMIT = 8.0
"""In nats; a uniform guess among 2,980 classes has this loss."""

SHARE = 0.125
"""b / C: all lanes together make the noise on the deltas at most 3.1 % larger."""

DIGITS = 4
"""b is rounded down to so many binary digits, so that it lies on the grid exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedMetrics:
    """Means over the devices of a round, with noise; None where no device was left to tell from it."""

    accuracy: float | None
    loss: float | None
    train_loss: float


def metric_weight(l2_clip_norm: float) -> float:
    """b, the half width of a lane in the units of the contribution.

    Example:
        >>> metric_weight(1.0)
        0.125
    """
    mantissa, exponent = math.frexp(SHARE * l2_clip_norm)
    return math.ldexp(math.floor(mantissa * 2**DIGITS), exponent - DIGITS)


def metric_noise(weight: float, noise: float, devices: int) -> float:
    """Standard deviation of the noise on the accuracy, if all of so many devices had held-out examples.

    Args:
        weight: b.
        noise: z S, the least that is promised.
        devices: n.
    """
    return noise / (2 * weight * devices)


def metric_lanes(
    *, accuracy: float | None, loss: float | None, train_loss: float, weight: float, step: float
) -> npt.NDArray[np.float32]:
    """One device's lanes, (4,) float32, on the grid and at most b each.

    Args:
        accuracy, loss: of the state that the round began with, on its held-out examples; None: it has none.
        train_loss: the mean over what it trained on.
        weight: b, a multiple of ``step``.
        step: of the grid.

    Guarantees:
        No lane is longer than b, whatever the losses:
        tests/privacy/test_noised_metrics.py::test_one_client_moves_the_sum_by_at_most_the_sensitivity.
    """
    measured = accuracy is not None and loss is not None
    shares = np.array(
        [
            1.0 if measured else -1.0,
            2.0 * accuracy - 1.0 if measured and accuracy is not None else 0.0,
            2.0 * loss / LOSS_LIMIT - 1.0 if measured and loss is not None else 0.0,
            2.0 * train_loss / LOSS_LIMIT - 1.0,
        ]
    )
    # Safe: b is on the grid and has few digits, so neither this rounding nor float32's carries a lane past it.
    on_grid: npt.NDArray[np.float32] = (np.rint(np.clip(shares, -1.0, 1.0) * (weight / step)) * step).astype(np.float32)
    return on_grid


def read_lanes(summed: npt.NDArray[np.float64], *, weight: float, survivors: int) -> NoisedMetrics:
    """The means that a noisy sum of lanes tells, cut to what they can be.

    Args:
        summed: (4,).
        weight: b of the round.
        survivors: devices in the sum; who took part is not hidden.
    """
    present, accuracy, loss, train_loss = (float(lane) / weight for lane in summed)
    measured = (survivors + present) / 2

    def mean(share: float, count: float) -> float:
        return min(1.0, max(0.0, (share / count + 1.0) / 2))

    return NoisedMetrics(
        accuracy=mean(accuracy, measured) if measured >= 1 else None,
        loss=LOSS_LIMIT * mean(loss, measured) if measured >= 1 else None,
        train_loss=LOSS_LIMIT * mean(train_loss, survivors),
    )
