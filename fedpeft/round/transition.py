"""From one round's sums to the next state: one function for the coordinator and for the devices that check it.

The rules of class E use nothing but correctly rounded + - * / sqrt and selections, in an order that is fixed, so two
machines get the same bits (docs/protocol.md, "Transitions"). There the coordinator publishes the unmasked words, and a
device that held the state before computes the state after by itself. Rules with matrix products, QR or SVD do not
repeat to the bit (class D); their states are bound, finite and in range, and no more. numpy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from fedpeft.adapter import AdapterSpec, AdapterState
from fedpeft.aggregate import Individual, RoundSums, ServerState, optimized, proposal, robust_proposal, settled
from fedpeft.aggregate.factors import factor_of
from fedpeft.aggregate.gradient_start import sketches, started_from
from fedpeft.aggregate.head_start import HEAD_BLOCK, measures_head, without_means
from fedpeft.aggregate.linear import mean
from fedpeft.config.rules import RULES
from fedpeft.errors import ConfigInvalid, RunFailed, SpecMismatch
from fedpeft.ids import BlockId, RoundId
from fedpeft.privacy import METRIC_LANES, decode_sum
from fedpeft.ring import BlockEncoding, RingParams, SumOutOfRange, SumRange
from fedpeft.round.history import BURNT
from fedpeft.round.linking import sums_digest
from fedpeft.round.messages import BlockPayload, Link
from fedpeft.round.metrics import in_bucket
from fedpeft.round.noise import planned_mechanism
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates import learning_rates
from fedpeft.round.ring_range import RingRange, ring_range
from fedpeft.round.size_class import size_class
from fedpeft.round.work import planned_blocks

__all__ = ["Opened", "advanced", "is_exact", "keeps_memory", "next_state"]

Sum = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a round left for its next state.

    Args:
        round_id: which.
        sums: of each opened block that it trained, by its name in the terms, (P,).
        owners, owner_weights: of each of them how many devices it is the sum of, and their weight.
        total_weight: of all devices in the sum; under client-level privacy how many were asked.
        survivors: how many devices are in the sum; with buckets in each, ascending.
        population: how many devices there are, asked or not.
        learning_rate_factor: of the round.
        individuals: single devices' deltas; in a simulation without secure sum only.
    """

    round_id: RoundId
    sums: Mapping[BlockId, Sum]
    owners: Mapping[BlockId, int]
    owner_weights: Mapping[BlockId, float]
    total_weight: float
    survivors: tuple[int, ...]
    population: int
    learning_rate_factor: float
    individuals: tuple[Individual, ...] = ()


def is_exact(plan: LearningPlan, adapter: AdapterSpec, round_id: int) -> bool:
    """Whether the state after this round is the same bits on every machine (class E)."""
    rule = plan.aggregate
    return (
        plan.secagg.mode != "off"
        and round_id <= plan.rounds.count
        and RULES[rule.rule].elementwise
        and not (rule.a_round_every or rule.fold_every or rule.auto_rank)
        and rule.robust in {"none", "median", "trimmed-mean"}
        and not measures_head(adapter, plan.adapter, round_id)
        and not sketches(plan.adapter, round_id)
        and all(method.between_rounds is None for method, _ in plan.adapter.declared())
        and not (plan.train.scaffold and isinstance(plan.train.learning_rate, str))  # powers: a matter of the C library
    )


def keeps_memory(plan: LearningPlan) -> bool:
    """Whether the next state depends on more than the last one and the sums: moments, or SCAFFOLD's controls."""
    return plan.aggregate.server_optimizer != "none" or plan.train.scaffold


def advanced(
    plan: LearningPlan, state: AdapterState, server: ServerState, opened: Opened
) -> tuple[AdapterState, ServerState]:
    """The next state and what to remember.

    Raises:
        RunFailed: the step cannot be taken or is not finite; nothing was changed.
    """
    rule, round_id = plan.aggregate, opened.round_id
    if sketches(plan.adapter, round_id):
        found = {b: total / opened.owner_weights[b] for b, total in opened.sums.items() if factor_of(b) == "A"}
        return (started_from(state, found) if found else state), server
    measured = measures_head(state.spec, plan.adapter, round_id)
    if measured and not any(in_bucket(HEAD_BLOCK, bucket) in opened.sums for bucket in range(rule.buckets + 1)):
        return state, server  # too few owners: the head stays as it is
    if measured:
        state = without_means(state)
    if rule.robust == "none":
        sums = RoundSums(
            sums=opened.sums,
            total_weight=opened.total_weight,
            owner_weights=opened.owner_weights,
            individuals=opened.individuals,
        )
        proposed = (mean if measured else partial(proposal, rule))(state, sums)
    else:
        proposed = robust_proposal(rule, state, _updates(plan, state.spec, opened))
    if measured:  # no step along a gradient: a server optimizer would remember it as one
        return proposed, server
    moved, server = optimized(rule, state, proposed, server)
    if plan.train.scaffold and rule.robust == "none":
        server = replace(server, control=_controls(plan, state.spec, server, opened))
    settled_state = settled(rule, moved, round_id=round_id, seed=plan.seed)
    return settled_state, _moments_after_normalisation(server, moved, settled_state)


def next_state(
    plan: LearningPlan,
    state: AdapterState,
    server: ServerState,
    link: Link,
    published: Sequence[BlockPayload],
    *,
    learning_rate_factor: float,
) -> tuple[AdapterState, ServerState]:
    """What a device makes of published words: the state that must be the link's.

    Args:
        state, server: with which the link's round began.
        link: of a round of class E with a sum; reached by the history.
        published: the unmasked words of every opened block, in the order of the terms.
        learning_rate_factor: of that round, as it was signed.

    Raises:
        SpecMismatch: the words are not those of the link, or no sum that its numbers allow.
        RunFailed: no step can be taken with them.
    """
    words = {part.block_id: part.values for part in published}
    if link.outcome == BURNT or len(words) != len(published) or sums_digest(words) != link.sums:
        raise SpecMismatch(f"Expected the sums of round {link.round_id} whose digest its link has, found others.")
    numbers = _numbers(plan, link, len(words))
    owners = dict(zip(words, numbers.owners, strict=True))
    expected = {
        in_bucket(block_id, bucket): block_id
        for bucket in (range(1, len(numbers.survivors) + 1) if plan.aggregate.buckets else [0])
        for block_id in planned_blocks(plan, state.spec, link.round_id)
    }
    if [name for name in expected if name in words] != list(words):
        raise SpecMismatch(f"Expected sums of blocks of round {link.round_id} in their order, found others.")
    try:
        sums = {
            name: _decoded(plan, state.spec, link, expected[name], block, owners[name]) for name, block in words.items()
        }
    except SumOutOfRange as error:
        raise SpecMismatch(f"Expected sums of round {link.round_id} that inputs can have: {error}") from error
    opened = Opened(
        round_id=RoundId(link.round_id),
        sums=sums,
        owners=owners,
        owner_weights=dict(zip(words, numbers.weights, strict=False)),
        total_weight=numbers.total,
        survivors=numbers.survivors,
        population=link.population,
        learning_rate_factor=learning_rate_factor,
    )
    return advanced(plan, state, server, opened)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """The numbers of a link: unpacked, checked, and in the units that deltas were multiplied by."""

    survivors: tuple[int, ...]
    owners: tuple[int, ...]
    weights: tuple[float, ...]
    total: float


def _numbers(plan: LearningPlan, link: Link, blocks: int) -> _Numbers:
    weighed = blocks if RULES[plan.aggregate.rule].owner_weights else 0
    if (len(link.owners), len(link.weights), len(link.survivors) % 4) != (4 * blocks, 8 * weighed, 0):
        raise SpecMismatch(f"Expected numbers for {blocks} blocks in the link of round {link.round_id}, found others.")
    survivors = tuple(np.frombuffer(link.survivors, ">u4").tolist())
    owners = tuple(np.frombuffer(link.owners, ">u4").tolist())
    weights = tuple(np.frombuffer(link.weights, ">u8").tolist())
    here = sum(survivors)
    by_size = plan.aggregate.weight == "examples" and plan.client_privacy is None
    most = 1 << size_class(plan.aggregate.max_weight) if by_size else 1
    possible = (
        0 < here <= link.devices
        and here <= link.population
        and here <= link.weight <= here * most
        and all(0 < count <= here for count in owners)
        and all(count <= weight <= count * most for count, weight in zip(owners, weights, strict=False))
    )
    if not possible:
        raise SpecMismatch(f"Expected possible numbers in the link of round {link.round_id}, found others.")
    total = float(link.devices) if plan.client_privacy is not None else link.weight / most
    return _Numbers(survivors=survivors, owners=owners, weights=tuple(weight / most for weight in weights), total=total)


def _decoded(plan: LearningPlan, adapter: AdapterSpec, link: Link, block_id: BlockId, words: bytes, owners: int) -> Sum:
    """One block's sum from its words, as the coordinator decoded it."""
    privacy = plan.client_privacy
    used = RingRange(max_abs=link.clip, bits=plan.secagg.noise_bits)
    if privacy is None:
        used = ring_range(plan, adapter, block_id, round_id=link.round_id, devices=link.devices)
    ranges = tuple(SumRange(length=tensor.size, max_abs=used.max_abs) for tensor in adapter[block_id].tensors)
    try:
        params = RingParams(bits=used.bits, addends=link.devices)
        encoding = BlockEncoding(params=params, ranges=ranges)
        if len(words) != encoding.size_bytes:
            raise SpecMismatch(f"{block_id}: expected {encoding.size_bytes} bytes of words, found {len(words)}.")
        numbers = np.frombuffer(words, encoding.zeros().dtype)
        if privacy is None:
            return encoding.decode(numbers, owners)
        lanes = (privacy.clip == "adaptive") + METRIC_LANES * (privacy.metrics == "noised")
        noise = planned_mechanism(
            privacy,
            plan.secagg,
            devices=link.devices,
            l2_clip_norm=link.clip,
            z=privacy.noise_multiplier or 0.0,
            parameters=lanes + sum(adapter[one].size for one in planned_blocks(plan, adapter, link.round_id)),
        )
    except ConfigInvalid as error:
        raise SpecMismatch(f"Expected terms of round {link.round_id} that the plan gives: {error}") from error
    return decode_sum(numbers, noise.terms.step)


def _updates(plan: LearningPlan, adapter: AdapterSpec, opened: Opened) -> list[Mapping[BlockId, Sum]]:
    """Mean deltas to take a robust statistic of: one per bucket, or one per device where devices are seen."""
    if not plan.aggregate.buckets:
        if not opened.individuals:
            raise RunFailed("Expected buckets or single devices' deltas for a robust rule, found neither.")
        return [one.deltas for one in opened.individuals]
    updates: list[Mapping[BlockId, Sum]] = []
    for bucket, here in enumerate(opened.survivors, 1):
        update = {
            block_id: opened.sums[name] / here
            for block_id in planned_blocks(plan, adapter, opened.round_id)
            if here and (name := in_bucket(block_id, bucket)) in opened.sums
        }
        if update:
            updates.append(update)
    return updates


def _controls(plan: LearningPlan, spec: AdapterSpec, server: ServerState, opened: Opened) -> dict[BlockId, Vector]:
    """SCAFFOLD's c after the round, from the sum of deltas alone.

    Each owner's control moves by -c - delta / (K eta), so c moves by the mean of that over the population.
    """
    controls, here = dict(server.control), sum(opened.survivors)
    rates = learning_rates(plan, spec, opened.sums.keys())
    share = here / max(opened.population, here)
    for block_id, total in opened.sums.items():
        step = plan.train.local_steps * rates[block_id] * opened.learning_rate_factor
        old = controls.get(block_id, np.zeros(total.shape, np.float32)).astype(np.float64)
        owners = opened.owners[block_id] / here
        moved = old - share * (owners * old + total / (opened.total_weight * step))
        controls[block_id] = moved.astype(np.float32)
    return controls


def _moments_after_normalisation(server: ServerState, before: AdapterState, after: AdapterState) -> ServerState:
    """Moments of blocks whose factors were normalised mean nothing for the new ones: they restart at zero."""
    turned = {block_id for block_id in after if before[block_id] is not after[block_id]}

    def kept(moments: Mapping[BlockId, Vector]) -> dict[BlockId, Vector]:
        return {block_id: vector for block_id, vector in moments.items() if block_id not in turned}

    return ServerState(first=kept(server.first), second=kept(server.second), control=kept(server.control))
