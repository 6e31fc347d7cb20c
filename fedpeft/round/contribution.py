"""What one device puts into the secure sum: weighted deltas and metrics, or clipped deltas and nothing else."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterState
from fedpeft.aggregate.device_side import rotated, rule_weight
from fedpeft.ids import BlockId
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS, Mechanism, NoiseTerms, bit_vector, clip, metric_lanes
from fedpeft.round.local import LocalResult, NotFinite
from fedpeft.round.messages import BlockPayload, FitRequest
from fedpeft.round.metrics import METRICS, OWNER_WEIGHTS, Contribution, in_bucket, metrics_vector
from fedpeft.round.plan import LearningPlan

__all__ = ["inputs_of"]

Vector = npt.NDArray[np.float32]


def inputs_of(
    plan: LearningPlan,
    request: FitRequest,
    state: AdapterState,
    result: LocalResult,
    owns: frozenset[BlockId],
    noise: Mechanism | None,
) -> tuple[BlockPayload, ...]:
    """What goes into the secure sum: each delta times the device's weight, and the metrics.

    Under noise: the deltas clipped together, every device alike, adaptive clipping's bit and noised metrics; nothing
    else. Under example-level privacy: the weight is all of the metrics.

    Args:
        plan, request: what was asked.
        state: the global state that training began with.
        result: what came of it.
        owns: the sums that this device adds to, by their names in the terms.
        noise: of a round under client-level privacy.

    Raises:
        NotFinite: a delta or a loss is NaN or infinite.
    """
    deltas = {block_id: d for block_id, d in result.deltas.items() if in_bucket(block_id, request.bucket) in owns}
    for block_id, delta in deltas.items():
        if not np.isfinite(delta).all():
            raise NotFinite(f"Training gave a value in {block_id} that is not finite; try a lower learning rate.")
    if not np.isfinite([result.trained_loss, result.evaluated_loss]).all():
        raise NotFinite("The loss is not finite; try a lower learning rate.")
    if plan.aggregate.rule == "fedrot":
        deltas = rotated(state, deltas)
    weight = 1.0 if noise else _weight(plan, state, deltas, result.examples)
    inputs = {in_bucket(block_id, request.bucket): delta * np.float32(weight) for block_id, delta in deltas.items()}
    if noise is not None:
        clipped = clip(inputs, l2_clip_norm=noise.terms.l2_clip_norm, allowance=noise.allowance)
        bit = noise.terms.bit_weight
        own_bit = {CLIP_BIT: bit_vector(clipped.scale == 1.0, bit)} if bit else {}
        return _payloads({**clipped.vectors, **own_bit, **_noised_metrics(result, noise.terms)})
    if plan.privacy is not None:  # losses and counts would be releases; the weight follows from a public number
        nothing = Contribution(weight=weight, trained_loss=0, trained=0, evaluated_loss=0, correct=0, evaluated=0)
        inputs[METRICS] = metrics_vector(nothing)
        return _payloads(inputs)
    contribution = Contribution(
        weight=weight,
        trained_loss=result.trained_loss,
        trained=result.trained,
        evaluated_loss=result.evaluated_loss,
        correct=result.correct,
        evaluated=result.evaluated,
    )
    if OWNER_WEIGHTS in owns:
        inputs[OWNER_WEIGHTS] = np.array([weight * (block_id in deltas) for block_id in request.blocks], np.float32)
    inputs[METRICS] = metrics_vector(contribution)
    return _payloads(inputs)


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


def _weight(plan: LearningPlan, state: AdapterState, deltas: Mapping[BlockId, Vector], examples: int) -> float:
    """In [0, 1]: the rule's own, or by examples up to the cap, or one."""
    rule = plan.aggregate
    own = rule_weight(rule, state, deltas) if rule.rule == "hetlora" and deltas else None
    if own is not None:
        return own
    return min(examples, rule.max_weight) / rule.max_weight if rule.weight == "examples" else 1.0


def _payloads(vectors: Mapping[BlockId, Vector]) -> tuple[BlockPayload, ...]:
    return tuple(BlockPayload(block_id=key, values=vector.astype("<f4").tobytes()) for key, vector in vectors.items())
