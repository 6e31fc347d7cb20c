"""What one device puts into the secure sum: weighted deltas and metrics, or clipped deltas and nothing else."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId
from fedpeft.privacy import Mechanism, clip
from fedpeft.round.local import LocalResult, NotFinite
from fedpeft.round.messages import BlockPayload
from fedpeft.round.metrics import METRICS, Contribution, metrics_vector
from fedpeft.round.plan import LearningPlan

__all__ = ["inputs_of"]

Vector = npt.NDArray[np.float32]


def inputs_of(
    plan: LearningPlan, result: LocalResult, owns: frozenset[BlockId], noise: Mechanism | None
) -> tuple[BlockPayload, ...]:
    """What goes into the secure sum: each delta times the device's weight, and the metrics.

    Under noise: the deltas clipped together, every device alike, and nothing else. Under example-level privacy: the
    weight is all of the metrics.

    Raises:
        NotFinite: a delta or a loss is NaN or infinite.
    """
    rule = plan.aggregate
    weight = min(result.examples, rule.max_weight) / rule.max_weight if rule.weight == "examples" and not noise else 1.0
    inputs = {block_id: delta * np.float32(weight) for block_id, delta in result.deltas.items() if block_id in owns}
    for block_id, delta in inputs.items():
        if not np.isfinite(delta).all():
            raise NotFinite(f"Training gave a value in {block_id} that is not finite; try a lower learning rate.")
    if not np.isfinite([result.trained_loss, result.evaluated_loss]).all():
        raise NotFinite("The loss is not finite; try a lower learning rate.")
    if noise is not None:
        clipped = clip(inputs, l2_clip_norm=noise.terms.l2_clip_norm, allowance=noise.allowance)
        return _payloads(clipped.vectors)
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
    inputs[METRICS] = metrics_vector(contribution)
    return _payloads(inputs)


def _payloads(vectors: Mapping[BlockId, Vector]) -> tuple[BlockPayload, ...]:
    return tuple(BlockPayload(block_id=key, values=vector.astype("<f4").tobytes()) for key, vector in vectors.items())
