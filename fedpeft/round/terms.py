"""The terms of a round's secure sum, from the run's plan and who takes part.

Pure, and the same on both sides: the coordinator proposes what ``round_terms`` gives, and a device refuses any other
terms than those it computes itself (``expect_terms``). What no plan decides, the roster, the attempt, the deadline and
the noise's numbers, is checked by the secure aggregation and by ``fedpeft.round.noise``; the history by
``fedpeft.round.run_memory``.
"""

from collections.abc import Sequence
from dataclasses import fields

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.config.model import SecureAggregation
from fedpeft.config.rules import RULES
from fedpeft.errors import SpecMismatch
from fedpeft.ids import ParticipantId
from fedpeft.privacy import CLIP_BIT, METRIC_LANES, NOISED_METRICS, NoiseTerms
from fedpeft.ring import SumRange
from fedpeft.round.messages import WorkTerms
from fedpeft.round.metrics import (
    COHORT_WEIGHT,
    METRIC_BITS,
    METRIC_RANGES,
    METRICS,
    TASK_METRICS,
    TRAIN_LOSS,
    TRAIN_LOSS_RANGES,
    WEIGHT_RANGES,
    in_bucket,
    task_ranges,
)
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates.search import RATE_PROBE_RANGES, RATE_PROBES, probes_rate
from fedpeft.round.ring_range import RingRange, ring_range
from fedpeft.round.task import Member
from fedpeft.round.work import dealt_buckets, work_digest
from fedpeft.wire import encode

__all__ = ["expect_terms", "participants_of", "round_terms"]


def participants_of(members: Sequence[Member]) -> tuple[secagg.Participant, ...]:
    """The roster: the members in this order, numbered from 1."""
    return tuple(
        secagg.Participant(
            participant_id=ParticipantId(place),
            device=member.profile.device,
            organisation=member.profile.organisation,
            identity=member.profile.identity,
        )
        for place, member in enumerate(members, 1)
    )


def round_terms(
    plan: LearningPlan,
    adapter: AdapterSpec,
    participants: tuple[secagg.Participant, ...],
    work: WorkTerms,
    *,
    round_id: int,
    attempt: int,
    stage_deadline_s: float,
    history: bytes,
    noise: NoiseTerms | None = None,
) -> secagg.RoundSpec:
    """The terms for this roster: one summed block per block of the work, or one for each bucket.

    The run goes by one name over all its starts: a device that has signed a survivor set in a round signs no other
    (docs/adr/0011-one-sum-per-round.md). Each tensor has a clipping range, that of its block (``ring_range``);
    the metrics are one more block, owned by everybody. Under noise there are no metrics, since a loss or a count is a
    release too, and the one clip is that of the contribution's norm; adaptive clipping adds its bit, and noised
    metrics their lanes.

    Args:
        work: what every device is to do.
        history: digest of every earlier round (``fedpeft.round.history``).
    """
    terms, chosen = plan.secagg, set(work.blocks)
    trained = [
        (
            block,
            ring_range(plan, adapter, block.block_id, round_id=round_id, devices=len(participants))
            if noise is None
            else RingRange(max_abs=noise.l2_clip_norm, bits=terms.noise_bits),
        )
        for block in adapter.blocks
        if block.block_id in chosen
    ]
    buckets = dealt_buckets(plan, [person.device for person in participants], round_id)
    blocks = tuple(
        secagg.SummedBlock(
            block_id=in_bucket(block.block_id, bucket),
            ranges=tuple(SumRange(length=tensor.size, max_abs=used.max_abs) for tensor in block.tensors),
            bits=used.bits,
        )
        for bucket in sorted(set(buckets.values())) or [0]
        for block, used in trained
    )
    lanes = [(TRAIN_LOSS, TRAIN_LOSS_RANGES)]
    if plan.privacy is None:
        lanes.insert(0, (METRICS, METRIC_RANGES))
        if (measure := plan.task.measure) is not None:
            lanes.insert(1, (TASK_METRICS, task_ranges(measure)))
        if probes_rate(plan, adapter, round_id):
            lanes.insert(-1, (RATE_PROBES, RATE_PROBE_RANGES))
    if trained and RULES[plan.aggregate.rule].own_weight:
        lanes.insert(0, (COHORT_WEIGHT, WEIGHT_RANGES))
    metrics = [secagg.SummedBlock(block_id=key, ranges=ranges, bits=METRIC_BITS) for key, ranges in lanes]
    if noise is not None:
        metrics = _noised(noise, terms)
    return secagg.RoundSpec(
        run_id=plan.run_id,
        round_id=round_id,
        attempt=attempt,
        mode=secagg.Mode.FAST if terms.mode == "fast" else secagg.Mode.FULL,
        participants=participants,
        blocks=(*blocks, *metrics),
        min_cohort=terms.min_cohort,
        corrupt_fraction=terms.corrupt_fraction,
        dropout_fraction=terms.dropout_fraction,
        stage_deadline_s=stage_deadline_s,
        noise=noise,
        work=work_digest(encode(work)),
        history=history,
    )


def expect_terms(terms: secagg.RoundSpec, plan: LearningPlan, adapter: AdapterSpec, work: WorkTerms) -> None:
    """The device's check: these are the terms of this plan, this roster and this work.

    Raises:
        SpecMismatch: names what differs.
    """
    expected = round_terms(
        plan,
        adapter,
        terms.participants,
        work,
        round_id=terms.round_id,
        attempt=terms.attempt,
        stage_deadline_s=terms.stage_deadline_s,
        history=terms.history,
        noise=terms.noise,
    )
    wrong = [
        field.name for field in fields(secagg.RoundSpec) if getattr(terms, field.name) != getattr(expected, field.name)
    ]
    if wrong:
        raise SpecMismatch(f"Expected the terms that follow from the plan, found another {', '.join(wrong)}.")


def _noised(noise: NoiseTerms, terms: SecureAggregation) -> list[secagg.SummedBlock]:
    """The blocks of the norm-below-clip bits and of the noised metrics, where the terms have them."""
    lanes = [(CLIP_BIT, 1, noise.bit_weight), (NOISED_METRICS, METRIC_LANES, noise.metric_weight)]
    return [
        secagg.SummedBlock(block_id=block_id, ranges=(SumRange(length=length, max_abs=weight),), bits=terms.noise_bits)
        for block_id, length, weight in lanes
        if weight
    ]
