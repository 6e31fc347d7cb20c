"""The round's own messages; the secure aggregation's travel inside or beside them as they are."""

import enum
from dataclasses import dataclass

from fedpeft.ids import BlockId
from fedpeft.privacy import ExampleStatement
from fedpeft.wire import message

__all__ = [
    "BlockDigest",
    "BlockPayload",
    "Failure",
    "FailureReason",
    "FitRequest",
    "History",
    "Link",
    "Profile",
    "ProfileRequest",
    "Ready",
    "WorkTerms",
]


class FailureReason(enum.Enum):
    """Why a device does not take part in a round, or not any more. Values are part of the wire format.

    Few on purpose: a reason that followed from the examples would be a question that a coordinator can ask about them.
    The cause stays on the device (``fedpeft.round.failures``).
    """

    MISSING_STATE = "missing-state"  # it lacks blocks that the coordinator thought it had
    MISSING_HISTORY = "missing-history"  # it lacks links from where it stands to this round
    MISSING_ROSTER = "missing-roster"  # it does not hold the roster whose digest is in the terms
    REFUSED = "refused"  # the plan, its site's rules or its budgets do not allow the round
    LATER = "later"  # its site takes part at other hours, or its owner has not answered yet
    UNABLE = "unable"  # it could not train; said in runs without privacy only, where its site allows it
    PROTOCOL = "protocol"  # a request that does not fit the terms or the device's state


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDigest:
    """A block's SHA-256 as the coordinator has it, hex."""

    block_id: BlockId
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPayload:
    """A block's values: float32, little-endian."""

    block_id: BlockId
    values: bytes


@message(0x0101)
@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """Asks a device who it is and what it can afford.

    Args:
        run_id: the run that it is asked to join.
    """

    run_id: str


@message(0x0102)
@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A device's answer.

    Args:
        device: its name, as enrolled.
        organisation: who runs it; minimum cohorts count organisations.
        identity: its Ed25519 public key, 32 bytes.
        methods: what it trains, for reports, e.g. ``lora r8``.
        held: digests of the blocks it still holds from earlier rounds.
        after: the last round of this run whose link it has; 0: none.
    """

    device: str
    organisation: str
    identity: bytes
    methods: str
    held: tuple[BlockDigest, ...]
    after: int = 0


@message(0x0103)
@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """Stage 1 of a round (docs/protocol.md, "Work").

    Nothing here is believed: ``learning`` and ``work`` count only if their digests are in the signed terms, ``history``
    only if it leads to the digest that they hold; ``payloads`` and ``controls`` carry bytes whose digests are in
    ``work``, ``sums`` such whose digest is in the last link. So whatever decides what a device computes is the same on
    all devices whose inputs can be summed.

    Args:
        offer: the secure aggregation's encoded ``RoundOffer``: the signed terms of this round, with their roster unless
            the device is thought to hold it from the round before.
        learning: the learning plan (``fedpeft.round.plan``), JSON.
        work: an encoded ``WorkTerms``.
        history: an encoded ``History``: the links that the device is thought to lack.
        payloads: those blocks of the global state that the device is thought to lack.
        controls: SCAFFOLD's server control of each block of the round, in units of a step.
        sums: instead of ``payloads``, for a device that holds the state before: the unmasked words of the last round,
            by the names of its terms and in their order.
    """

    offer: bytes
    learning: str
    work: bytes
    history: bytes
    payloads: tuple[BlockPayload, ...]
    controls: tuple[BlockPayload, ...]
    sums: tuple[BlockPayload, ...] = ()


@message(0x0104)
@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The device has trained. Says nothing about its data.

    Args:
        advertise: the secure aggregation's first reply: owned blocks and signed round keys.
        privacy: under example-level privacy, what its examples have lost in this run.
    """

    advertise: bytes
    privacy: ExampleStatement | None = None


@message(0x0105)
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The device takes no (further) part in this round; all refusals for one reason are the same bytes.

    Args:
        after: with ``MISSING_HISTORY``, the last round whose link the device has; otherwise 0.
    """

    reason: FailureReason
    after: int = 0


@message(0x0106)
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTerms:
    """What one round asks every device to compute. The signed terms hold its digest; a device recomputes what follows
    from the plan, and refuses a difference (``fedpeft.round.work``).

    Args:
        plan: SHA-256 of the learning plan's JSON.
        state: digest of the global state that the round begins with.
        controls: digest of SCAFFOLD's server controls.
        blocks: the blocks that the round trains, in the adapter's order; a device trains those of them that it can.
        first_step: how many local steps the run has asked for before this round.
        learning_rate_factor: the schedule's factor, in [0, 1].
        learning_rate_scale: how many times the table's learning rates, as an earlier round measured; 0: they are not
            measured (``fedpeft.round.rates.search``).
        eval_examples: held-out examples to evaluate the received state on; 0 for all.
        train: False asks for the evaluation alone.
    """

    plan: bytes
    state: bytes
    controls: bytes
    blocks: tuple[BlockId, ...]
    first_step: int
    learning_rate_factor: float
    learning_rate_scale: float
    eval_examples: int
    train: bool


@message(0x0107)
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What became of one round, as all devices of the run are to know it (docs/protocol.md, "History").

    Numbers in ``bytes`` are big-endian, 4 bytes each, in ``weights`` 8. Of a burnt round ``outcome`` and ``sums`` are
    32 zero bytes, ``weight`` is 0 and the packed numbers are empty.

    Args:
        round_id: from 1.
        attempt: the one that ended the round.
        state: digest of the global state after it, with which the next round begins.
        outcome: the survivor set whose sum was opened (C3).
        sums: digest of the unmasked words of every opened block that the round trained.
        devices: how many were on the roster.
        population: how many devices the coordinator had heard of.
        survivors: how many are in the sum; with buckets one number for each, ascending.
        weight: sum of the survivors' public weights, in units of the smallest.
        owners: of each block in ``sums`` how many survivors own it, in the order of the terms.
        weights: their public weights, likewise; empty under rules that do not use them.
        clip: the clip norm of its noise; 0: it had none.
    """

    round_id: int
    attempt: int
    state: bytes
    outcome: bytes
    sums: bytes
    devices: int
    population: int
    survivors: bytes
    weight: int
    owners: bytes
    weights: bytes
    clip: float


@message(0x0108)
@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What came before a round: links of consecutive rounds, the last one that of the round before.

    Args:
        first: digest of the state of round 1.
        links: all of them, or those that a device is thought to lack.
    """

    first: bytes
    links: tuple[Link, ...]
