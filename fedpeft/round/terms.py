"""The terms of a round's secure sum, from the run's configuration and who takes part.

Pure: the same members in the same order give the same terms. What the devices then accept is theirs to
decide (``secagg.DevicePolicy``).
"""

from collections.abc import Sequence

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.config.model import Rounds, SecureAggregation
from fedpeft.config.rules import RULES
from fedpeft.ids import ParticipantId
from fedpeft.methods import due_blocks
from fedpeft.privacy import CLIP_BIT, METRIC_LANES, NOISED_METRICS, NoiseTerms
from fedpeft.ring import SumRange
from fedpeft.round.metrics import (
    COHORT_WEIGHT,
    METRIC_BITS,
    METRIC_RANGES,
    METRICS,
    TRAIN_LOSS,
    TRAIN_LOSS_RANGES,
    WEIGHT_RANGES,
    in_bucket,
)
from fedpeft.round.plan import LearningPlan
from fedpeft.round.task import Member, RoundTask

__all__ = ["round_terms"]


def round_terms(
    plan: LearningPlan,
    adapter: AdapterSpec,
    members: Sequence[Member],
    task: RoundTask,
    *,
    rounds: Rounds,
    terms: SecureAggregation,
) -> secagg.RoundSpec:
    """The terms for these members, in this order: the roster, and one summed block a block that is due.

    The run goes by one name over all its starts: a device that has signed a survivor set in a round signs no other
    (docs/adr/0011-one-sum-per-round.md). Each tensor has its own clipping range,
    all of them ``terms.max_abs``; the metrics are further blocks, and the training loss is owned by everybody. No lane
    of them holds a count. Under noise there are no metrics, since a loss is a release too, and the one clip is that of
    the contribution's norm; adaptive clipping adds its bit, and noised metrics their lanes.
    """
    participants = tuple(
        secagg.Participant(
            participant_id=ParticipantId(place),
            device=member.profile.device,
            organisation=member.profile.organisation,
            identity=member.profile.identity,
        )
        for place, member in enumerate(members, 1)
    )
    max_abs = terms.max_abs if task.noise is None else task.noise.l2_clip_norm
    due = due_blocks(adapter, plan.adapter, task.round_id) if task.train else frozenset()
    trained = [block for block in task.trained(adapter) if block.block_id in due]
    blocks = tuple(
        secagg.SummedBlock(
            block_id=in_bucket(block.block_id, bucket),
            ranges=tuple(SumRange(length=tensor.size, max_abs=max_abs) for tensor in block.tensors),
            bits=terms.bits,
        )
        for bucket in sorted(set(task.bucket_of.values())) or [0]
        for block in trained
    )
    lanes = [(TRAIN_LOSS, TRAIN_LOSS_RANGES)]
    if plan.privacy is None:
        lanes.insert(0, (METRICS, METRIC_RANGES))
    if trained and RULES[plan.aggregate.rule].own_weight:
        lanes.insert(0, (COHORT_WEIGHT, WEIGHT_RANGES))
    metrics = [secagg.SummedBlock(block_id=key, ranges=ranges, bits=METRIC_BITS) for key, ranges in lanes]
    if task.noise is not None:
        metrics = _noised(task.noise, terms)
    return secagg.RoundSpec(
        run_id=plan.run_id,
        round_id=task.round_id,
        attempt=task.attempt,
        mode=secagg.Mode.FAST if terms.mode == "fast" else secagg.Mode.FULL,
        participants=participants,
        blocks=(*blocks, *metrics),
        min_cohort=terms.min_cohort,
        corrupt_fraction=terms.corrupt_fraction,
        dropout_fraction=terms.dropout_fraction,
        stage_deadline_s=rounds.stage_deadline_s,
        noise=task.noise,
    )


def _noised(noise: NoiseTerms, terms: SecureAggregation) -> list[secagg.SummedBlock]:
    """The blocks of the norm-below-clip bits and of the noised metrics, where the terms have them."""
    lanes = [(CLIP_BIT, 1, noise.bit_weight), (NOISED_METRICS, METRIC_LANES, noise.metric_weight)]
    return [
        secagg.SummedBlock(block_id=block_id, ranges=(SumRange(length=length, max_abs=weight),), bits=terms.bits)
        for block_id, length, weight in lanes
        if weight
    ]
