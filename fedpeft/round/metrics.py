"""What a round measures: means that each device takes over its own examples, weighed by its public size.

They go through the ring like the deltas, in blocks of their own, and no lane of any sum holds a count: denominators are
the public size classes of those who are in the sum (``fedpeft.round.size_class``). Evaluation is of the state that the
round *starts* from: it costs no exchange of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedpeft.config.task import Task
from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId
from fedpeft.privacy import LOSS_LIMIT
from fedpeft.ring import SumRange
from fedpeft.round.rates.search import RATE_PROBES
from fedpeft.tasks import Measure

__all__ = [
    "ACCURACY_STEPS",
    "COHORT_WEIGHT",
    "METRICS",
    "METRIC_BITS",
    "METRIC_RANGES",
    "NOTHING_MEASURED",
    "TASK_METRICS",
    "TRAIN_LOSS",
    "TRAIN_LOSS_RANGES",
    "WEIGHT_RANGES",
    "Measured",
    "evaluation_vector",
    "in_bucket",
    "in_task_units",
    "measured_in",
    "rounded_accuracy",
    "task_ranges",
    "task_vector",
    "train_loss_vector",
]

METRICS = BlockId("metrics")
"""Two lanes, of devices with held-out examples: weight x mean loss, weight x accuracy."""

TRAIN_LOSS = BlockId("train-loss")
"""One lane, of every device of a round without client-level privacy: weight x mean training loss."""

COHORT_WEIGHT = BlockId("cohort-weight")
"""One lane, of every device under a rule whose weights are no counts (HetLoRA's norms): its weight."""

METRIC_RANGES: tuple[SumRange, ...] = (
    SumRange(length=1, max_abs=LOSS_LIMIT),
    SumRange(length=1, max_abs=1.0),
)
TRAIN_LOSS_RANGES: tuple[SumRange, ...] = (SumRange(length=1, max_abs=LOSS_LIMIT),)
WEIGHT_RANGES: tuple[SumRange, ...] = (SumRange(length=1, max_abs=1.0),)

TASK_METRICS = BlockId("task-metrics")
"""The lanes of the task's measure (``fedpeft.tasks.measure``), of devices with held-out examples: weight x mean."""

METRIC_BITS = 64
"""Ring width of these blocks: few lanes, so precision costs nothing."""

ACCURACY_STEPS = 64
"""An accuracy is a multiple of one over this: of 5 correct out of 7, the exact share would tell the 7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The cohort's means; None where nothing was measured, or too few measured it to open its sum.

    Args:
        evaluators: devices with held-out examples in the sum; public, as who owns which block is.
        loss, accuracy: of the state that the round began with.
        train_loss: over what was trained on.
        metrics: the task's further ones, of the state that the round began with.
        rate_losses: in the round that measures the learning rate, the loss at each of its multiples; else none.
    """

    evaluators: int
    loss: float | None
    accuracy: float | None
    train_loss: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rate_losses: tuple[float, ...] = ()


NOTHING_MEASURED = Measured(evaluators=0, loss=None, accuracy=None, train_loss=None)
"""A round under client-level privacy: its metrics would be releases, and are not collected."""


def in_bucket(block_id: BlockId, bucket: int) -> BlockId:
    """The name under which one bucket sums a block; bucket 0 is the whole cohort."""
    return BlockId(f"{block_id}@{bucket}") if bucket else block_id


def rounded_accuracy(correct: float, count: float, entropy: Entropy) -> float:
    """The share of right answers as a multiple of 1/64, rounded up or down at random so that its mean is right.

    Args:
        correct, count: of predictions; ``count`` above 0.
        entropy: asked for 8 bytes.
    """
    exact = ACCURACY_STEPS * min(1.0, max(0.0, correct / count))
    below = int(exact)
    draw = int.from_bytes(entropy(8), "little") / 2.0**64
    return (below + (draw < exact - below)) / ACCURACY_STEPS


def evaluation_vector(
    weight: float, *, loss_sum: float, correct: float, count: float, entropy: Entropy
) -> npt.NDArray[np.float32]:
    """One device's ``METRICS``, (2,) float32; the largest loss and no accuracy where nothing could be evaluated.

    Args:
        weight: its public share, in (0, 1].
        loss_sum, correct, count: of its own held-out predictions.
        entropy: for ``rounded_accuracy``.
    """
    if count <= 0:
        return np.array([weight * LOSS_LIMIT, 0.0], np.float32)
    accuracy = rounded_accuracy(correct, count, entropy)
    return np.array([weight * _cut(loss_sum / count), weight * accuracy], np.float32)


def task_ranges(measure: Measure) -> tuple[SumRange, ...]:
    """What the lanes of ``TASK_METRICS`` may hold."""
    return tuple(SumRange(length=lanes.number, max_abs=lanes.most) for lanes in measure.lanes)


def task_vector(
    weight: float, means: npt.NDArray[np.float64] | None, measure: Measure, entropy: Entropy
) -> npt.NDArray[np.float32]:
    """One device's ``TASK_METRICS``, (lanes,) float32; zeros where nothing could be evaluated.

    Args:
        weight: its public share, in (0, 1].
        means: of each lane over its own held-out examples, (lanes,).
        measure: the task's.
        entropy: for the rounding of means of counts, as of the accuracy.
    """
    kinds = measure.lanes
    most = np.concatenate([np.full(lanes.number, lanes.most) for lanes in kinds])
    if means is None or means.shape != most.shape or not np.isfinite(means).all():
        return np.zeros(len(most), np.float32)
    cut = np.clip(means, -most, most)
    steps = np.concatenate([np.full(lanes.number, lanes.steps) for lanes in kinds])
    counted = np.flatnonzero(steps)
    draws = np.frombuffer(entropy(8 * len(counted)), "<u8") / 2.0**64
    exact = cut[counted] * steps[counted]
    below = np.floor(exact)
    cut[counted] = (below + (draws < exact - below)) / steps[counted]
    return (weight * np.clip(cut, -most, most)).astype(np.float32)


def train_loss_vector(weight: float, *, loss_sum: float, count: float) -> npt.NDArray[np.float32]:
    """One device's ``TRAIN_LOSS``, (1,) float32; the largest loss where nothing could be trained on."""
    return np.array([weight * (_cut(loss_sum / count) if count > 0 else LOSS_LIMIT)], np.float32)


def measured_in(
    sums: Mapping[BlockId, npt.NDArray[np.float64]],
    weights: Mapping[BlockId, float],
    *,
    evaluators: int,
    trained: bool,
    task: Task,
) -> Measured:
    """Means from the opened sums.

    Args:
        sums: block by block.
        weights: of each opened block the sum of its owners' public shares.
        evaluators: devices whose evaluation is in the sum.
        task: of the run: what its lanes make, and the unit of its losses.
        trained: whether training losses were asked for.
    """
    loss = accuracy = train_loss = None
    metrics: dict[str, float] = {}
    if METRICS in sums:
        loss, accuracy = (float(lane) / weights[METRICS] for lane in sums[METRICS])
    if TASK_METRICS in sums and (measure := task.measure) is not None:
        metrics = measure.metrics(np.asarray(sums[TASK_METRICS], np.float64) / weights[TASK_METRICS])
    rate_losses: tuple[float, ...] = ()
    if RATE_PROBES in sums:
        rate_losses = tuple(float(lane) / weights[RATE_PROBES] for lane in sums[RATE_PROBES])
    if trained and TRAIN_LOSS in sums:
        train_loss = float(sums[TRAIN_LOSS][0]) / weights[TRAIN_LOSS]
    measured = Measured(
        evaluators=evaluators if loss is not None else 0,
        loss=loss,
        accuracy=accuracy,
        train_loss=train_loss,
        metrics=metrics,
        rate_losses=rate_losses,
    )
    return in_task_units(measured, task)


def in_task_units(measured: Measured, task: Task) -> Measured:
    """Losses as the task has them, and an accuracy only where the task has one."""
    loss, train_loss = (None if one is None else task.loss_unit * one for one in (measured.loss, measured.train_loss))
    accuracy = measured.accuracy if task.record.accuracy else None
    return replace(measured, loss=loss, train_loss=train_loss, accuracy=accuracy)


def _cut(loss: float) -> float:
    return min(LOSS_LIMIT, max(0.0, loss)) if np.isfinite(loss) else LOSS_LIMIT
