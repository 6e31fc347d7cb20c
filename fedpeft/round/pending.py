"""A round whose survivors are fixed, as the coordinator keeps it until its sum is committed (docs/protocol.md).

``PendingRound`` is durable before the first CONSIST byte (fast mode: REVEAL); what is heard after it is noted beside
it. A restarted coordinator reads both and goes on with the same survivors: ``coordinator.resume_round``. These are
messages for one purpose, the file that only the coordinator may read; they never travel.
"""

from dataclasses import dataclass
from typing import Protocol

from fedpeft.errors import IntegrityFailed
from fedpeft.ids import ParticipantId
from fedpeft.round.messages import Profile
from fedpeft.round.task import Traffic
from fedpeft.secagg.primitives import Secret
from fedpeft.wire import WireError, decode, encode, message

__all__ = [
    "Note",
    "PendingRound",
    "PendingStore",
    "ReceivedReply",
    "StageClosed",
    "dump_note",
    "load_note",
    "load_round",
]


@message(0x0190, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRound:
    """What finishing the round needs beside the run's own files.

    Args:
        round_id, attempt: which.
        members: everybody who was asked, in the roster's order.
        accounts: each one's part in the round so far.
        summing: the sum itself, ``secagg.dump_pending``.
    """

    round_id: int
    attempt: int
    members: tuple[Profile, ...]
    accounts: tuple[Traffic, ...]
    summing: Secret


@message(0x0191, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedReply:
    """A reply to CONSIST or REVEAL, encoded as it came."""

    sender: ParticipantId
    reply: bytes


@message(0x0192, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class StageClosed:
    """No more replies of this stage count: ``consist``, and the next is REVEAL; ``reveal``, and the sum is open."""

    stage: str


Note = ReceivedReply | StageClosed


class PendingStore(Protocol):
    """Where a round in its last stages outlives the coordinator's process."""

    def keep(self, pending: PendingRound) -> None:
        """Durable when it returns; called once per round, before any device hears of the survivors.

        Raises:
            FedpeftError: the sum must not be opened, e.g. because the privacy budget is spent.
        """
        ...

    def note(self, note: Note) -> None:
        """Adds to what is kept; a ``StageClosed``, and all notes before it, are durable when it returns."""
        ...


def load_round(dumped: bytes, *, where: str) -> PendingRound:
    """The pending round of these bytes, its encoding.

    Args:
        where: they lie.

    Raises:
        IntegrityFailed: another version of fedpeft kept it, or something else did.
    """
    try:
        return decode(dumped, PendingRound)
    except WireError as error:
        raise IntegrityFailed(
            f"{where}: {error} The survivors of this round are fixed, and no other sum of it may be made: "
            "finish the round with the version of fedpeft that began it, then continue with this one."
        ) from error


def dump_note(note: Note) -> bytes:
    """The note as bytes."""
    return encode(note)


def load_note(dumped: bytes) -> Note:
    """What ``dump_note`` dumped.

    Raises:
        WireError: anything else.
    """
    note = decode(dumped, (ReceivedReply, StageClosed))
    if not isinstance(note, Note):
        raise TypeError(f"Expected a note, found {type(note).__name__}.")
    return note
