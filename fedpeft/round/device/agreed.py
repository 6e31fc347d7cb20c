"""What a device signed for, held against what a later link of the history says was summed (ADR 0018, ADR 0024).

A link's numbers divide its sums: with a smaller weight the same words make a longer step. Whoever signed a survivor set
has seen the roster, so it knows who was in each sum, and with what public weight.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft.config.rules import RULES
from fedpeft.errors import SpecMismatch
from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.round.device.records import kept, run_key
from fedpeft.round.linking import MEASURED, packed, public_weights, survivors_in_buckets
from fedpeft.round.local import DeviceStore
from fedpeft.round.messages import Link
from fedpeft.round.plan import LearningPlan
from fedpeft.secagg import AgreedSum
from fedpeft.wire import encode, message

__all__ = ["AgreedRoster", "expect_agreed", "keep_agreed"]

_KIND = "agreed"


@message(0x0188, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedRoster:
    """Store record: the sum of a run that this device signed for last.

    Args:
        run_id, round_id: of it.
        outcome: the context of the survivor set (C3).
        names: every device that was asked, in the order of the terms.
        survivors: their places in the terms, ascending; 4 bytes each, big-endian.
        classes: their weight classes, a byte each.
        blocks: the blocks of the terms that were trained, in their order.
        owners: for each of them the survivors that own it, as ``survivors``.
    """

    run_id: str
    round_id: int
    outcome: bytes
    names: tuple[str, ...]
    survivors: bytes
    classes: bytes
    blocks: tuple[BlockId, ...]
    owners: tuple[bytes, ...]


def keep_agreed(store: DeviceStore, agreed: AgreedSum) -> None:
    """Remembers, durably, what the link of this sum will have to say."""
    spec = agreed.spec
    blocks = [block.block_id for block in spec.blocks if block.block_id not in MEASURED]
    record = AgreedRoster(
        run_id=spec.run_id,
        round_id=spec.round_id,
        outcome=agreed.context,
        names=tuple(person.device for person in spec.participants),
        survivors=packed(sorted(agreed.weight_classes), ">u4"),
        classes=bytes(agreed.weight_classes[place] for place in sorted(agreed.weight_classes)),
        blocks=tuple(blocks),
        owners=tuple(packed(sorted(agreed.owners[block_id]), ">u4") for block_id in blocks),
    )
    store.write(run_key(spec.run_id, _KIND), encode(record))


def expect_agreed(store: DeviceStore, plan: LearningPlan, link: Link, opened: tuple[BlockId, ...] = ()) -> None:
    """Returns if a link is of another sum than this device signed for last in the run, or has the numbers that it saw.

    Args:
        link: of any round.
        opened: the blocks that its sums are of, in order; empty: not known, and any part of those of the terms may be.

    Raises:
        SpecMismatch: names the number that differs.
    """
    agreed = kept(store, run_key(plan.run_id, _KIND), AgreedRoster)
    if agreed is None or agreed.round_id != link.round_id:
        return
    if link.outcome != agreed.outcome:  # burnt: others did not sign
        return
    places = _places(agreed.survivors)
    classes = {place: SizeClass(size) for place, size in zip(places, agreed.classes, strict=True)}
    weights = public_weights(plan, classes)
    names = {ParticipantId(place): name for place, name in enumerate(agreed.names, 1)}
    expected = {
        "devices": len(names),
        "survivors": packed(survivors_in_buckets(plan, names, agreed.round_id, places), ">u4"),
        "weight": sum(weights.values()),
    }
    for name, value in expected.items():
        if getattr(link, name) != value:
            raise SpecMismatch(_text(agreed.round_id, name))
    by_block = {
        block_id: (len(owners), sum(weights[place] for place in owners))
        for block_id, owners in zip(agreed.blocks, map(_places, agreed.owners), strict=True)
    }
    counts = np.frombuffer(link.owners, ">u4").tolist()
    if opened and counts != [by_block.get(block_id, (0, 0))[0] for block_id in opened]:
        raise SpecMismatch(_text(agreed.round_id, "owners"))
    weighed = np.frombuffer(link.weights, ">u8").tolist() if RULES[plan.aggregate.rule].owner_weights else None
    told = list(counts) if weighed is None else list(zip(counts, weighed, strict=False))
    signed = iter([pair[0] if weighed is None else pair for pair in by_block.values()])
    if not all(any(one == other for other in signed) for one in told):  # in the order of the terms, some left out
        raise SpecMismatch(_text(agreed.round_id, "owners of a block"))


def _places(packed_places: bytes) -> list[ParticipantId]:
    return [ParticipantId(place) for place in np.frombuffer(packed_places, ">u4").tolist()]


def _text(round_id: int, name: str) -> str:
    return f"Expected in the link of round {round_id} the {name} that this device signed for, found others."
