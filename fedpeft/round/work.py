"""What a round asks of a device: what follows from the plan, the digests that bind the rest, and the device's check.

One function of the plan gives both sides every value (docs/protocol.md, "Work"): the coordinator to propose it, the
device to refuse any other. What no plan can foretell, the state and SCAFFOLD's controls, is bound by its digest, so it
is the same on every device whose input can be in the sum. Pure; numpy only.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec
from fedpeft.aggregate import assign_buckets
from fedpeft.aggregate.device_side import local_blocks
from fedpeft.aggregate.factors import factor_of
from fedpeft.aggregate.gradient_start import sketches
from fedpeft.cohorts import effective_cohort
from fedpeft.config.rules import factors_of
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId, RoundId
from fedpeft.methods import due_blocks
from fedpeft.privacy import NoiseStream
from fedpeft.round.messages import BlockPayload, WorkTerms
from fedpeft.round.plan import LearningPlan, learning_rate_factor
from fedpeft.round.rates.search import LEAST, MOST, follows_search
from fedpeft.secagg.primitives import digest

__all__ = [
    "Work",
    "accept_work",
    "controls_digest",
    "dealt_buckets",
    "last_round",
    "plan_digest",
    "planned_blocks",
    "state_digest",
    "work_digest",
    "work_terms",
]

Vector = npt.NDArray[np.float32]

COSINE_TOLERANCE = 2.0**-40
"""Two C libraries may give cosines that differ in the last bit; the factor that was sent is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one device does in one round; every value checked against the plan, or bound by the signed terms.

    Args:
        round_id: from 1.
        first_step, learning_rate_factor, learning_rate_scale, eval_examples, train, blocks: see ``WorkTerms``.
        bucket: which bucket's sums the device belongs to, from 1; 0: sums are not bucketed.
        controls: SCAFFOLD's server control of each block.
        history: digest of everything before this round (h_{r-1}), as the signed terms have it.
        earlier: digests of shorter pasts that this one continues, as far as this device has followed them.
        draws: this device's own random bytes for whatever it measures, the same in every round and run.
        noise: where its correlated noise is before this round; None: its noise is independent, or it adds none.
    """

    round_id: RoundId
    first_step: int
    learning_rate_factor: float
    learning_rate_scale: float
    eval_examples: int
    train: bool
    blocks: tuple[BlockId, ...]
    bucket: int
    controls: Mapping[BlockId, Vector]
    history: bytes = b""
    earlier: frozenset[bytes] = frozenset()
    draws: bytes = b""
    noise: NoiseStream | None = None


def plan_digest(learning: str) -> bytes:
    """SHA-256 of a plan's JSON."""
    return hashlib.sha256(learning.encode()).digest()


def state_digest(digests: Mapping[BlockId, str]) -> bytes:
    """Of a whole state, from the SHA-256 (hex) of each block, in the adapter's order."""
    return digest("state", *_pairs(digests.items()))


def controls_digest(controls: Iterable[BlockPayload]) -> bytes:
    """Of SCAFFOLD's controls, ascending by block; of none, too."""
    parts = sorted(controls, key=lambda part: part.block_id)
    return digest("controls", *_pairs((part.block_id, hashlib.sha256(part.values).hexdigest()) for part in parts))


def work_digest(work: bytes) -> bytes:
    """Of an encoded ``WorkTerms``: what the signed terms hold."""
    return digest("work", work)


def last_round(plan: LearningPlan) -> int:
    """The last round of a run: one evaluates the final state, where anything may be measured."""
    return plan.rounds.count + (plan.privacy is None and plan.client_privacy is None)


def planned_blocks(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> tuple[BlockId, ...]:
    """The blocks that a round may train, in the adapter's order; none in an evaluation."""
    if round_id > plan.rounds.count:
        return ()
    rule = plan.aggregate
    factors: frozenset[str] = factors_of(rule.rule, round_id, a_round_every=rule.a_round_every)
    if sketches(plan.adapter, round_id):
        factors = frozenset({"A"})
    due, local = due_blocks(adapter, plan.adapter, round_id), local_blocks(rule, adapter)
    return tuple(
        block.block_id
        for block in adapter.blocks
        if block.block_id in due and block.block_id not in local and factor_of(block.block_id) in {"", *factors}
    )


def dealt_buckets(plan: LearningPlan, names: Sequence[str], round_id: int) -> dict[str, int]:
    """Device name -> its bucket in this round, from 1; empty where sums are not bucketed.

    No bucket is smaller than the least cohort, however few devices are there.

    Args:
        names: of the roster, in its order.
    """
    least = effective_cohort(plan.secagg.min_cohort, plan.secagg.corrupt_fraction, len(names))
    count = min(plan.aggregate.buckets, len(names) // least)
    return assign_buckets(names, count, seed=plan.seed, round_id=round_id) if round_id <= plan.rounds.count else {}


def work_terms(
    plan: LearningPlan,
    adapter: AdapterSpec,
    round_id: int,
    *,
    state: bytes,
    blocks: Iterable[BlockId] | None = None,
    controls: Iterable[BlockPayload] = (),
    scale: float = 0.0,
) -> WorkTerms:
    """The work of a round.

    Args:
        state: digest of the state that the round begins with.
        scale: how many times the table's learning rates; only of a round that follows their measurement.
        blocks: to train, of the planned ones; None: all of them.
        controls: SCAFFOLD's; empty without.
    """
    planned = planned_blocks(plan, adapter, round_id)
    chosen = planned if blocks is None else set(blocks)
    train = round_id <= plan.rounds.count
    privacy = plan.client_privacy
    silent = privacy is not None and privacy.metrics != "noised"  # nothing of it leaves: the least there is
    evaluated = 1 if silent else plan.rounds.eval_examples
    return WorkTerms(
        plan=plan_digest(plan.to_json()),
        state=state,
        controls=controls_digest(controls),
        blocks=tuple(block_id for block_id in planned if block_id in chosen),
        first_step=(round_id - 1) * plan.train.local_steps,
        learning_rate_factor=learning_rate_factor(plan.train, plan.rounds, round_id) if train else 0.0,
        learning_rate_scale=scale if follows_search(plan, adapter, round_id) else 0.0,
        eval_examples=evaluated if train else 0,
        train=train,
    )


def accept_work(
    plan: LearningPlan,
    adapter: AdapterSpec,
    round_id: int,
    work: WorkTerms,
    *,
    bucket: int,
    controls: Sequence[BlockPayload],
) -> Work:
    """The device's check: all that follows from the plan is as this device computes it.

    The state and the blocks' values are checked when they are put together: against ``work.state``.

    Args:
        plan: whose digest the terms hold.
        adapter: as this device builds it.
        round_id: of the terms.
        work: whose digest the terms hold.
        bucket: this device's own.
        controls: received.

    Raises:
        SpecMismatch: names what differs.
    """
    if not 1 <= round_id <= last_round(plan):
        raise SpecMismatch(f"Expected a round of 1..{last_round(plan)}, found {round_id}.")
    scale = work.learning_rate_scale  # what the plan cannot foretell: within its limits, and bound
    known = scale if LEAST <= scale <= MOST else 0.0
    expected = work_terms(plan, adapter, round_id, state=work.state, controls=controls, scale=known)
    factor = work.learning_rate_factor
    if 0.0 <= factor <= 1.0 and abs(factor - expected.learning_rate_factor) <= COSINE_TOLERANCE:
        expected = replace(expected, learning_rate_factor=factor)
    # Idle tiers follow from singular values, which two machines may round apart: bound, not recomputed.
    planned = set(expected.blocks)
    if plan.aggregate.auto_rank and planned.issuperset(work.blocks):
        expected = replace(expected, blocks=tuple(b for b in expected.blocks if b in set(work.blocks)))
    wrong = [field.name for field in fields(WorkTerms) if getattr(work, field.name) != getattr(expected, field.name)]
    if wrong:
        raise SpecMismatch(
            f"Expected the work that follows from the plan in round {round_id}, found another {', '.join(wrong)}."
        )
    return Work(
        round_id=RoundId(round_id),
        first_step=work.first_step,
        learning_rate_factor=factor,
        learning_rate_scale=scale,
        eval_examples=work.eval_examples,
        train=work.train,
        blocks=work.blocks,
        bucket=bucket,
        controls=_control_vectors(controls, adapter, plan.max_state),
    )


def _control_vectors(controls: Sequence[BlockPayload], adapter: AdapterSpec, limit: float) -> dict[BlockId, Vector]:
    sizes = {block.block_id: 4 * block.size for block in adapter.blocks}
    found: dict[BlockId, Vector] = {}
    for part in controls:
        if sizes.get(part.block_id) != len(part.values) or part.block_id in found:
            raise SpecMismatch(f"Expected one control for a block of the adapter, found {part.block_id} otherwise.")
        found[part.block_id] = np.frombuffer(part.values, "<f4").astype(np.float32)
        if not (largest := float(np.abs(found[part.block_id]).max(initial=0.0))) <= limit:
            raise SpecMismatch(f"Expected a finite control of {part.block_id} of at most {limit:g}, found {largest:g}.")
    return found


def _pairs(digests: Iterable[tuple[BlockId, str]]) -> Iterable[bytes]:
    for block_id, sha256 in digests:
        yield block_id.encode()
        yield bytes.fromhex(sha256)
