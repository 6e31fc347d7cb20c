"""What a device checks before it takes part: the round's work, the sums that it adds to, what that costs. Pure."""

from collections.abc import Sequence, Set

import numpy as np

from fedpeft import secagg
from fedpeft.adapter import AdapterSpec
from fedpeft.config.check_dp_compatible import expect_proved
from fedpeft.errors import ConfigInvalid, PolicyRefused, SpecMismatch
from fedpeft.ids import BlockId
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS, Mechanism, PrivacyLedger
from fedpeft.round.device.records import RunPin
from fedpeft.round.messages import BlockPayload, FitRequest
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TASK_METRICS, TRAIN_LOSS, in_bucket
from fedpeft.round.noise import expect_noise
from fedpeft.round.plan import MAX_STATE
from fedpeft.round.rates.search import RATE_PROBES, follows_search
from fedpeft.round.signed_request import SignedRequest
from fedpeft.round.terms import expect_terms
from fedpeft.round.work import Work, accept_work, dealt_buckets

__all__ = ["accepted_work", "clipped_coordinates", "expect_affordable", "owned_sums"]


def accepted_work(
    signed: SignedRequest, pin: RunPin, spec: AdapterSpec, request: FitRequest, *, identity: bytes
) -> Work:
    """What a device does in this round, all of it as the plan says.

    Args:
        signed: what the coordinator signed.
        pin: the run as this device has known it.
        spec: the adapter as this device builds it.
        request: with the controls, whose digest is in the work.
        identity: the device's public key.

    Raises:
        SpecMismatch: something is not as the plan says; names it.
        ConfigInvalid: the plan asks for what nothing proves.
    """
    terms, plan = signed.terms, signed.plan
    if plan.max_state > MAX_STATE:
        raise SpecMismatch(f"Expected a plan with max_state <= {MAX_STATE:g}, found {plan.max_state:g}.")
    if spec.digest != plan.adapter_spec:
        raise SpecMismatch(f"Expected adapter {plan.adapter_spec[:12]}, built {spec.digest[:12]} on this device.")
    names = [person.device for person in terms.participants]
    mine = [person.device for person in terms.participants if person.identity == identity]
    buckets = dealt_buckets(plan, names, terms.round_id)
    bucket = buckets.get(mine[0], 0) if mine else 0
    work = accept_work(plan, spec, terms.round_id, signed.work, bucket=bucket, controls=request.controls)
    if pin.scale and follows_search(plan, spec, terms.round_id) and work.learning_rate_scale != pin.scale:
        raise SpecMismatch(
            f"Expected the learning rates that this run measured, {pin.scale:g} times the table's, found "
            f"{work.learning_rate_scale:g} times."
        )
    expect_noise(
        plan,
        terms.noise,
        round_id=terms.round_id,
        devices=len(terms.participants),
        parameters=sum(block.length for block in terms.blocks),
        seen=(pin.round_id, pin.clip) if pin.clip else None,
    )
    expect_terms(terms, plan, spec, signed.work)
    # The coordinator may have checked nothing.
    expect_proved(
        plan.adapter,
        plan.train,
        plan.aggregate,
        units=(*(("client",) if terms.noise else ()), *((plan.privacy.unit,) if plan.privacy else ())),
        bucket=bucket,
    )
    return work


def owned_sums(terms: secagg.RoundSpec, work: Work, trained: Set[BlockId], *, evaluates: bool) -> frozenset[BlockId]:
    """The sums of an attempt that a device adds to that trains these blocks, and those of its measurements."""
    offered = {block.block_id for block in terms.blocks}
    owned = {in_bucket(block_id, work.bucket) for block_id in trained & set(work.blocks)}
    owned |= {TRAIN_LOSS, COHORT_WEIGHT, CLIP_BIT, NOISED_METRICS}
    if evaluates:
        owned |= {METRICS, TASK_METRICS, RATE_PROBES}
    return frozenset(owned & offered)


def clipped_coordinates(terms: secagg.RoundSpec, inputs: Sequence[BlockPayload]) -> str:
    """What of a device's input the ranges of the terms cut off, for its own log; empty: nothing.

    Args:
        inputs: float32 little-endian, by their names in the terms.
    """
    ranges = {block.block_id: block.ranges for block in terms.blocks}
    told = []
    for part in inputs:
        values, start = np.abs(np.frombuffer(part.values, "<f4")), 0
        for one in ranges.get(part.block_id, ()):
            beyond = int(np.count_nonzero(values[start : start + one.length] > one.max_abs))
            if beyond:
                told.append(f"{part.block_id}: {beyond} of {one.length} coordinates were beyond {one.max_abs:g}")
            start += one.length
    return f"{'; '.join(told)}, and were cut. Set secagg.max_abs if this goes on." if told else ""


def expect_affordable(noise: Mechanism, budget: PrivacyLedger | None) -> None:
    """Returns if a round's noise keeps a promise, and the device's own budget allows it.

    Raises:
        ConfigInvalid: the noise cannot be used.
        PolicyRefused: the budget does not allow it.
    """
    if problems := noise.problems():
        raise ConfigInvalid("The noise of this round cannot be used.", problems=problems)
    if budget is not None and budget.would_exceed(noise.release):
        spent, limit = budget.spent(), budget.budget.epsilon
        raise PolicyRefused(f"Expected a round within epsilon={limit:g}, this device's own; spent are {spent:.4g}.")
