"""The link of a round that is over, from what the coordinator opened, or of one that was burnt."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from fedpeft.config.rules import RULES
from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.privacy import CLIP_BIT, NOISED_METRICS
from fedpeft.round.history import BURNT
from fedpeft.round.messages import Link
from fedpeft.round.metrics import COHORT_WEIGHT, METRICS, TASK_METRICS, TRAIN_LOSS
from fedpeft.round.plan import LearningPlan
from fedpeft.round.rates.search import RATE_PROBES
from fedpeft.round.size_class import share_of, size_class
from fedpeft.round.task import RoundTask
from fedpeft.round.work import dealt_buckets
from fedpeft.secagg import BlockSum, Summed
from fedpeft.secagg.primitives import digest

__all__ = ["burnt_link", "link_of", "packed", "public_weights", "summed_blocks", "sums_digest", "survivors_in_buckets"]

MEASURED = frozenset({METRICS, TASK_METRICS, RATE_PROBES, TRAIN_LOSS, COHORT_WEIGHT, CLIP_BIT, NOISED_METRICS})
"""Blocks of the terms that no block of the adapter has: nothing of them is in the next state of a rule that devices
recompute, so they are not published."""


def summed_blocks(summed: Summed) -> dict[BlockId, BlockSum]:
    """The opened blocks that the round trained, by their names in the terms and in its order."""
    return {block_id: total for block_id, total in summed.sums.items() if block_id not in MEASURED}


def sums_digest(words: Mapping[BlockId, bytes]) -> bytes:
    """Of the unmasked words of opened blocks, in the order of the terms."""
    parts = chain.from_iterable((block_id.encode(), _sha256(block)) for block_id, block in words.items())
    return digest("sums", *parts)


def public_weights(plan: LearningPlan, classes: Mapping[ParticipantId, SizeClass]) -> dict[ParticipantId, int]:
    """The weight of each of these, in units of the smallest that the run gives.

    Args:
        classes: as their adverts declare them.
    """
    by_size = plan.aggregate.weight == "examples" and plan.client_privacy is None
    largest = size_class(plan.aggregate.max_weight)
    return {
        place: round(share_of(declared, plan.aggregate.max_weight) * 2.0**largest) if by_size else 1
        for place, declared in classes.items()
    }


def survivors_in_buckets(
    plan: LearningPlan, names: Mapping[ParticipantId, str], round_id: int, survivors: Iterable[ParticipantId]
) -> tuple[int, ...]:
    """How many devices are in the sum; with buckets in each of them, ascending."""
    buckets = dealt_buckets(plan, list(names.values()), round_id)
    places = [buckets.get(names[place], 0) for place in survivors]
    return tuple(places.count(number) for number in sorted(set(buckets.values())) or [0])


def link_of(
    task: RoundTask, names: Mapping[ParticipantId, str], summed: Summed, *, state: bytes, population: int
) -> Link:
    """The link of a round with a sum.

    Args:
        task: the attempt that ended in it.
        names: the roster, in its order.
        state: digest of the state after it.
        population: how many devices the coordinator had heard of.
    """
    plan, blocks = task.plan, summed_blocks(summed)
    weights = public_weights(plan, summed.weight_classes)
    of_owners = [sum(weights[place] for place in block.members) for block in blocks.values()]
    return Link(
        round_id=task.round_id,
        attempt=task.attempt,
        state=state,
        outcome=summed.context,
        sums=sums_digest({block_id: block.words for block_id, block in blocks.items()}),
        devices=len(names),
        population=max(population, len(summed.survivors)),
        survivors=packed(survivors_in_buckets(plan, names, task.round_id, summed.survivors), ">u4"),
        weight=sum(weights.values()),
        owners=packed([block.owners for block in blocks.values()], ">u4"),
        weights=packed(of_owners, ">u8") if RULES[plan.aggregate.rule].owner_weights else b"",
        clip=task.noise.l2_clip_norm if task.noise else 0.0,
    )


def burnt_link(task: RoundTask, *, state: bytes, devices: int, population: int) -> Link:
    """The link of a round without a sum: the state is that of before."""
    return Link(
        round_id=task.round_id,
        attempt=task.attempt,
        state=state,
        outcome=BURNT,
        sums=BURNT,
        devices=devices,
        population=population,
        survivors=b"",
        weight=0,
        owners=b"",
        weights=b"",
        clip=task.noise.l2_clip_norm if task.noise else 0.0,
    )


def packed(numbers: Sequence[int], kind: str) -> bytes:
    """Whole numbers as bytes, e.g. of numpy's kind ``>u4``: four each."""
    return np.array(numbers, kind).tobytes()


def _sha256(words: bytes) -> bytes:
    return hashlib.sha256(words).digest()
