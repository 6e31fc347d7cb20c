"""What the coordinator remembers, and the two ways a round ends (docs/protocol.md, "Coordinator").

    Fitting -> Sharing -> Masking -> [Agreeing] -> Revealing -> Summed        any stage -> Aborted

``Open`` is what every stage has in common; ``Open.progress`` is one frozen dataclass a stage with only the data that
later stages need. The accumulators of ``Masking`` are added to in place: a state that was passed on must not be used
again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.secagg.messages import Advertise, Reason, Request, RoundOffer, ShareRequest
from fedpeft.secagg.primitives import Secret
from fedpeft.secagg.roster import Roster
from fedpeft.secagg.spec import RoundSpec

__all__ = [
    "KEY_SHARE",
    "Aborted",
    "Agreeing",
    "BlockSum",
    "CoordinatorState",
    "Fitting",
    "Masking",
    "Members",
    "Open",
    "Progress",
    "Rejection",
    "Requests",
    "Revealing",
    "ShareName",
    "Sharing",
    "SignedTerms",
    "Summed",
    "aborted",
]


KEY_SHARE = -1
"""Stands for the mask key where a block's index would be."""

ShareName = tuple[ParticipantId, int]
"""A dealer, and which of its secrets: a block's index, or ``KEY_SHARE``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a device is out of this round."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTerms:
    """The signed terms of one attempt: what stays the same through its stages.

    Args:
        spec: the terms.
        offer: the terms as signed and sent.
        context: of the offer.
        channel_seed: of the coordinator's X25519 key of this attempt.
    """

    spec: RoundSpec
    offer: RoundOffer
    context: bytes
    channel_seed: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """Waiting for adverts."""

    adverts: Mapping[ParticipantId, Advertise] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """U1, once it is fixed: who is in and with which keys.

    Args:
        roster: the members and how they are joined.
        request: the ``ShareRequest`` that all of them got, without their neighbours' keys.
        adverts: each member's.
        reply_keys: authenticate each member's replies.
    """

    roster: Roster
    request: ShareRequest
    adverts: Mapping[ParticipantId, Advertise]
    reply_keys: Mapping[ParticipantId, Secret]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Waiting for ciphertexts."""

    members: Members
    ciphertexts: Mapping[ParticipantId, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """Adding up masked inputs as they come; each is forgotten at once.

    Args:
        members: U1.
        sharers: U2, a bitmap.
        sums: for each block, ring words, added to in place.
        unopened: for each dealer, who could not open its ciphertext.
        signatures: of each device that masked, over the sharers.
    """

    members: Members
    sharers: bytes
    sums: Mapping[BlockId, npt.NDArray[np.unsignedinteger]]
    unopened: Mapping[ParticipantId, frozenset[ParticipantId]] = field(default_factory=dict)
    signatures: Mapping[ParticipantId, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreeing:
    """Waiting for each survivor (U3) to sign the survivor set."""

    masked: Masking
    survivors: frozenset[ParticipantId]
    bitmap: bytes
    signatures: Mapping[ParticipantId, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealing:
    """Waiting for shares.

    Args:
        masked: U1, U2 and the masked sums.
        survivors: U3.
        witnesses: those of U3 that count in a cohort: whose agreement every device was shown; in fast mode all.
        context: of U3.
        shares: from each holder, its shares by dealer and kind (a block's index, or ``KEY_SHARE``).
    """

    masked: Masking
    survivors: frozenset[ParticipantId]
    witnesses: frozenset[ParticipantId]
    context: bytes
    shares: Mapping[ParticipantId, Mapping[ShareName, bytes]] = field(default_factory=dict)


Progress = Fitting | Sharing | Masking | Agreeing | Revealing

STAGE_NAMES: Mapping[type, str] = {
    Fitting: "fit",
    Sharing: "share",
    Masking: "mask",
    Agreeing: "consist",
    Revealing: "reveal",
}


class Requests(Mapping[ParticipantId, Request]):
    """What to ask whom, each made when it is looked up: those of a stage never lie in memory all at once.

    Args:
        members: whom to ask, in order.
        make: the request of one of them, the same whenever it is called.
    """

    def __init__(self, members: Collection[ParticipantId], make: Callable[[ParticipantId], Request]) -> None:
        self._members, self._make = dict.fromkeys(members), make

    def __getitem__(self, member: ParticipantId) -> Request:
        if member not in self._members:
            raise KeyError(member)
        return self._make(member)

    def __iter__(self) -> Iterator[ParticipantId]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._members


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A round that goes on.

    Args:
        terms: what is summed, as the devices were told.
        requests: what each device of this stage is to be sent.
        answered: who has given a valid reply to it.
        rejected: who is out of the round, and why.
        progress: the stage's own data.
    """

    terms: SignedTerms
    requests: Mapping[ParticipantId, Request]
    answered: frozenset[ParticipantId]
    rejected: Mapping[ParticipantId, Rejection]
    progress: Progress

    @property
    def stage(self) -> str:
        """fit, share, mask, consist or reveal."""
        return STAGE_NAMES[type(self.progress)]

    def waits_for(self, member: ParticipantId) -> bool:
        """Whether this one was asked and has neither answered nor dropped out."""
        return member in self.requests and member not in self.answered and member not in self.rejected

    @property
    def waiting(self) -> frozenset[ParticipantId]:
        """Who was asked and has neither answered nor dropped out; when it is empty the stage can be closed."""
        return frozenset(self.requests) - self.answered - self.rejected.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSum:
    """The sum of one block over the survivors that own it.

    Args:
        values: (P,) float64.
        members: the devices that it is the sum of.
        words: the unmasked ring words that ``values`` were decoded from, as they travel; empty: kept by nobody.
    """

    values: npt.NDArray[np.float64]
    members: frozenset[ParticipantId]
    words: bytes = b""

    @property
    def owners(self) -> int:
        """How many devices it is the sum of."""
        return len(self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """The round's outcome: at least one block was opened.

    Args:
        sums: block by block.
        survivors: U3, whose inputs are in the sums.
        context: of that set (C3).
        weight_classes: each survivor's, as its signed advert declared it.
        skipped: blocks that stay masked, and why.
        rejected: devices that fell out, and why.
    """

    sums: Mapping[BlockId, BlockSum]
    survivors: frozenset[ParticipantId]
    context: bytes
    weight_classes: Mapping[ParticipantId, SizeClass]
    skipped: Mapping[BlockId, str]
    rejected: Mapping[ParticipantId, Rejection]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """The round's other outcome: no sum, and why.

    Args:
        reason: what went wrong.
        detail: in words.
        blamed: devices without which another attempt should be made.
        restartable: whether another attempt at this round can succeed; not once survivors were put to the devices.
        rejected: devices that fell out, and why.
    """

    reason: Reason
    detail: str
    blamed: frozenset[ParticipantId]
    restartable: bool
    rejected: Mapping[ParticipantId, Rejection]


CoordinatorState = Open | Summed | Aborted


def aborted(
    state: Open, reason: Reason, detail: str, *, blamed: Iterable[ParticipantId] = (), restartable: bool
) -> Aborted:
    """The end of a round without a sum; devices that dropped out are not asked again either."""
    everyone = frozenset(blamed) | state.rejected.keys()
    return Aborted(
        reason=reason, detail=detail, blamed=everyone, restartable=restartable, rejected=dict(state.rejected)
    )
