"""What one device puts into the secure sum: weighted deltas and metrics, or clipped deltas and nothing else.

``trained`` is called once per round, ``contribution`` once per attempt at it: what an attempt asks for otherwise, its
buckets or its noise, is made from the same result, so that no second look at the examples can be had.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.device_side import own_values
from fedpeft.aggregate.rules import STEPS, rule_weight
from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId, SizeClass
from fedpeft.privacy import CLIP_BIT, LOSS_LIMIT, NOISED_METRICS, Mechanism, NoiseTerms, bit_vector, clip, metric_lanes
from fedpeft.round.failures import cause_of, is_for_lack_of_room
from fedpeft.round.local import Effort, LocalResult, Trainer
from fedpeft.round.messages import BlockPayload
from fedpeft.round.metrics import (
    COHORT_WEIGHT,
    METRICS,
    TASK_METRICS,
    TRAIN_LOSS,
    evaluation_vector,
    in_bucket,
    task_vector,
    train_loss_vector,
)
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates.search import RATE_PROBES, probe_vector
from fedpeft.round.size_class import weight_share
from fedpeft.round.work import Work

__all__ = ["contribution", "trained"]

Vector = npt.NDArray[np.float32]

NOTHING_TRAINED = LocalResult(deltas={}, trained_loss=0.0, trained=0, evaluated_loss=0.0, correct=0, evaluated=0)
"""Of a device that could not use its examples: zeros in all of its own sums."""


def trained(
    trainer: Trainer,
    plan: LearningPlan,
    work: Work,
    state: AdapterState,
    *,
    blocks: frozenset[BlockId],
    effort: Effort,
    tell: Callable[[str], None],
) -> tuple[LocalResult, bool]:
    """Train: in the worst case zeros, and never an exception.

    Args:
        trainer: whose ``fit`` may raise anything.
        plan, work, state: what was asked.
        blocks: of the work, that the device adds to.
        effort: to begin with; what fails for lack of room is tried again with care, what fails otherwise is not.
        tell: hears what went wrong; on the device.

    Returns:
        One delta for each of ``blocks``, ``cleansed``, and whether the examples could be used.
    """
    sizes = {block_id: state.spec[block_id].size for block_id in work.blocks if block_id in blocks}
    able = effort is not Effort.BLANK
    while effort is not Effort.BLANK or plan.privacy is not None:  # without noise of their own, blank steps are none
        try:
            result, wrong = cleansed(trainer.fit(plan, state, work, effort), sizes)
        except Exception as error:
            tell(cause_of(error))
            if effort is Effort.BLANK:
                break
            careful = effort is Effort.FULL and is_for_lack_of_room(error)
            able, effort = careful, Effort.CAREFUL if careful else Effort.BLANK
        else:
            for trouble in (*result.troubles, *wrong):
                tell(trouble)
            return result, able and not wrong
    return cleansed(NOTHING_TRAINED, sizes)[0], False


def contribution(
    plan: LearningPlan,
    work: Work,
    state: AdapterState,
    result: LocalResult,
    *,
    owns: frozenset[BlockId],
    noise: Mechanism | None,
    declared: SizeClass,
    entropy: Entropy,
    tell: Callable[[str], None],
) -> tuple[tuple[BlockPayload, ...], bool]:
    """What goes into the sum of one attempt: ``inputs_of``, or zeros if that fails, and whether it did not fail.

    Args:
        plan, work, state, result, owns, noise, declared, entropy: see ``inputs_of``.
        tell: hears what went wrong; on the device.
    """
    try:
        return inputs_of(plan, work, state, result, owns, noise, declared=declared, entropy=entropy), True
    except Exception as error:  # of the size of a model, say: its text would be about the values
        tell(cause_of(error))
    nothing, _ = cleansed(NOTHING_TRAINED, {block_id: delta.size for block_id, delta in result.deltas.items()})
    return inputs_of(plan, work, state, nothing, owns, noise, declared=declared, entropy=entropy), False


def cleansed(result: LocalResult, sizes: Mapping[BlockId, int]) -> tuple[LocalResult, tuple[str, ...]]:
    """What may enter a sum, and what was wrong with the rest.

    A block of another size or with a value that is not finite is zero; a loss that is not finite is the largest one.

    Args:
        result: of training.
        sizes: coordinates of each block that the device adds to.
    """
    wrong, deltas = [], {}
    for block_id, size in sizes.items():
        delta = result.deltas.get(block_id)
        if delta is None or delta.shape != (size,):
            wrong.append(f"Training gave no value of {block_id} that fits.")
        elif not np.isfinite(delta).all():
            wrong.append(f"Training gave a value in {block_id} that is not finite; try a lower learning rate.")
        else:
            deltas[block_id] = delta
            continue
        deltas[block_id] = np.zeros(size, np.float32)
    if not np.isfinite([result.trained_loss, result.evaluated_loss]).all():
        wrong.append("The loss is not finite; try a lower learning rate.")
    safe = replace(
        result,
        deltas=deltas,
        trained_loss=_finite(result.trained_loss, result.trained),
        evaluated_loss=_finite(result.evaluated_loss, result.evaluated),
    )
    return safe, tuple(wrong)


def _finite(loss: float, count: int) -> float:
    return loss if np.isfinite(loss) else LOSS_LIMIT * count


def inputs_of(
    plan: LearningPlan,
    work: Work,
    state: AdapterState,
    result: LocalResult,
    owns: frozenset[BlockId],
    noise: Mechanism | None,
    *,
    declared: SizeClass,
    entropy: Entropy,
) -> tuple[BlockPayload, ...]:
    """What goes into the secure sum: each delta times the device's public share, and its own means likewise.

    Under noise: the deltas clipped together, every device alike, adaptive clipping's bit and noised metrics; nothing
    else. Under example-level privacy: no means, since each would be a release.

    Args:
        plan, work: what was asked.
        state: the global state that training began with.
        result: what came of it, ``cleansed``.
        owns: the sums that this device adds to, by their names in the terms.
        noise: of a round under client-level privacy.
        declared: the device's size class, as its advert says.
        entropy: for the rounding of the accuracy.
    """
    deltas = dict(result.deltas)
    before_sum = STEPS[plan.aggregate.rule].before_sum
    if before_sum is not None:
        deltas = before_sum(state, deltas)
    if noise is not None:
        return _payloads(_clipped(_named(deltas, work), _in_units(result, plan), noise))
    share = weight_share(plan.aggregate, declared)
    inputs: dict[BlockId, Vector] = {}
    weight = share
    if COHORT_WEIGHT in owns:
        weight = rule_weight(plan.aggregate, state, deltas) or share
        deltas = own_values(state, deltas)
        inputs[COHORT_WEIGHT] = np.array([weight], np.float32)
    inputs |= {key: delta * np.float32(weight) for key, delta in _named(deltas, work).items()}
    measured = plan.privacy is None  # else a loss would be a release; the lanes stay, for devices that own nothing else
    if METRICS in owns:
        inputs[METRICS] = evaluation_vector(
            share if measured else 0.0,
            loss_sum=result.evaluated_loss / plan.task.loss_unit,
            correct=result.correct,
            count=result.evaluated,
            entropy=entropy,
        )
    if TASK_METRICS in owns and (measure := plan.task.measure) is not None:
        inputs[TASK_METRICS] = task_vector(share, result.lanes, measure, entropy)
    if RATE_PROBES in owns:
        inputs[RATE_PROBES] = probe_vector(
            share, None if result.probes is None else result.probes / plan.task.loss_unit
        )
    if TRAIN_LOSS in owns:
        loss_sum = result.trained_loss / plan.task.loss_unit
        inputs[TRAIN_LOSS] = train_loss_vector(
            share if measured and work.train else 0.0, loss_sum=loss_sum, count=result.trained
        )
    return _payloads(inputs)


def _in_units(result: LocalResult, plan: LearningPlan) -> LocalResult:
    """Losses as they are summed."""
    unit = plan.task.loss_unit
    return replace(result, trained_loss=result.trained_loss / unit, evaluated_loss=result.evaluated_loss / unit)


def _named(deltas: Mapping[BlockId, Vector], work: Work) -> dict[BlockId, Vector]:
    """By their names in the terms."""
    return {in_bucket(block_id, work.bucket): delta for block_id, delta in deltas.items()}


def _clipped(deltas: Mapping[BlockId, Vector], result: LocalResult, noise: Mechanism) -> dict[BlockId, Vector]:
    clipped = clip(deltas, l2_clip_norm=noise.terms.l2_clip_norm, allowance=noise.allowance)
    bit = noise.terms.bit_weight
    own_bit = {CLIP_BIT: bit_vector(clipped.scale == 1.0, bit)} if bit else {}
    return {**clipped.vectors, **own_bit, **_noised_metrics(result, noise.terms)}


def _noised_metrics(result: LocalResult, terms: NoiseTerms) -> dict[BlockId, Vector]:
    """This device's own means, each a lane that the noise covers; none without a weight."""
    if not terms.metric_weight:
        return {}
    held = result.evaluated > 0
    lanes = metric_lanes(
        accuracy=result.correct / result.evaluated if held else None,
        loss=result.evaluated_loss / result.evaluated if held else None,
        train_loss=result.trained_loss / result.trained if result.trained else 0.0,
        weight=terms.metric_weight,
        step=terms.step,
    )
    return {NOISED_METRICS: lanes}


def _payloads(vectors: Mapping[BlockId, Vector]) -> tuple[BlockPayload, ...]:
    # The last word: a rule's own weight may overflow too, and the secure sum would refuse aloud what is not finite.
    safe = {key: vector if np.isfinite(vector).all() else np.zeros_like(vector) for key, vector in vectors.items()}
    return tuple(BlockPayload(block_id=key, values=vector.astype("<f4").tobytes()) for key, vector in safe.items())
