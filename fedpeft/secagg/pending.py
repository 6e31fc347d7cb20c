"""A sum whose survivors are fixed, as bytes: all that the coordinator needs to have it opened after a restart.

From the first CONSIST byte on (fast mode: REVEAL) a round has one survivor set for ever. So before that byte the
coordinator keeps its state, and a restarted one asks the same question again: docs/protocol.md, "Coordinator", and
docs/adr/0011-one-sum-per-round.md. What is kept is the end of MASK; ``load_pending`` takes the same step from there
that the first process took, so requests are made by one piece of code only. Replies are kept beside it by the caller
and given to ``receive`` again.

Guarantees (tests/secagg/test_pending.py):
- the loaded state is the dumped one: test_a_loaded_sum_goes_on_as_the_dumped_one;
- bytes that are not its one encoding are refused: test_other_bytes_are_refused.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft.errors import IntegrityFailed
from fedpeft.ids import ParticipantId
from fedpeft.secagg.coordinator_close import close, reply_key
from fedpeft.secagg.coordinator_state import Agreeing, Masking, Members, Open, Rejection, Revealing, SignedTerms
from fedpeft.secagg.messages import Advertise, Reason, RoundOffer, ShareRequest
from fedpeft.secagg.primitives import AgreementKey, Secret
from fedpeft.secagg.roster import Roster, members_of, pack_members, read_roster
from fedpeft.secagg.spec import block_encoding
from fedpeft.secagg.transcript import offer_context
from fedpeft.wire import decode, encode, message

__all__ = ["dump_pending", "load_pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unopened:
    """Who could not open a dealer's ciphertext."""

    dealer: ParticipantId
    holders: tuple[ParticipantId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rejected:
    """Who is out of the round, and why."""

    participant_id: ParticipantId
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    """A device's over the sharers."""

    participant_id: ParticipantId
    signature: bytes


@message(0x0390, kept=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class _PendingSum:
    """The end of MASK; never travels.

    Args:
        offer: the signed terms.
        channel_seed: of the coordinator's key of this attempt.
        roster: U1, without adverts.
        adverts: each member's, ascending.
        sharers, survivors: U2 and U3, bitmaps.
        sums: the masked sum of each block in the terms' order, little-endian words.
        unopened, rejected: ascending.
        signatures: over the sharers, of each device that masked, ascending.
    """

    offer: RoundOffer
    channel_seed: Secret
    roster: ShareRequest
    adverts: tuple[Advertise, ...]
    sharers: bytes
    survivors: bytes
    sums: tuple[bytes, ...]
    unopened: tuple[_Unopened, ...]
    rejected: tuple[_Rejected, ...]
    signatures: tuple[_Signature, ...]


def dump_pending(state: Open) -> bytes:
    """A state in CONSIST or REVEAL as bytes, secrets included: for a file that only its owner may read.

    Raises:
        ValueError: the survivors are not fixed yet.
    """
    if not isinstance(state.progress, Agreeing | Revealing):
        raise ValueError(f"Expected a sum in stage consist or reveal, found one in {state.stage}.")
    masked = state.progress.masked
    members = masked.members
    return encode(
        _PendingSum(
            offer=state.terms.offer,
            channel_seed=state.terms.channel_seed,
            roster=members.request,
            adverts=tuple(members.adverts[member] for member in members.roster.members),
            sharers=masked.sharers,
            survivors=pack_members(state.progress.survivors, members.roster.members),
            sums=tuple(masked.sums[block.block_id].tobytes() for block in state.terms.spec.blocks),
            unopened=tuple(
                _Unopened(dealer=dealer, holders=tuple(sorted(holders)))
                for dealer, holders in sorted(masked.unopened.items())
            ),
            rejected=tuple(
                _Rejected(participant_id=member, reason=rejection.reason, detail=rejection.detail)
                for member, rejection in sorted(state.rejected.items())
            ),
            signatures=tuple(
                _Signature(participant_id=member, signature=signature)
                for member, signature in sorted(masked.signatures.items())
            ),
        )
    )


def load_pending(dumped: bytes) -> Open:
    """The state that ``dump_pending`` was given, before any reply to its requests.

    Raises:
        WireError: not the encoding of such a state.
        IntegrityFailed: its parts contradict each other.
    """
    kept = decode(dumped, _PendingSum)
    roster = read_roster(kept.offer, kept.roster)
    if isinstance(roster, str):
        raise IntegrityFailed(f"Expected the roster of a pending sum, found one that cannot be used: {roster}")
    survivors = members_of(kept.survivors, roster.members)
    sizes = [block_encoding(roster.spec, block).size_bytes for block in roster.spec.blocks]
    if survivors is None or len(kept.adverts) != len(roster.members) or [len(words) for words in kept.sums] != sizes:
        raise IntegrityFailed("Expected a pending sum with one advert per member and one sum per block, found others.")
    terms = SignedTerms(
        spec=roster.spec,
        offer=kept.offer,
        context=offer_context(kept.offer),
        channel_seed=kept.channel_seed,
    )
    masking = Masking(
        members=_members(kept, roster, terms),
        sharers=kept.sharers,
        sums={
            block.block_id: np.frombuffer(words, block_encoding(roster.spec, block).zeros().dtype).copy()
            for block, words in zip(roster.spec.blocks, kept.sums, strict=True)
        },
        unopened={entry.dealer: frozenset(entry.holders) for entry in kept.unopened},
        signatures={entry.participant_id: entry.signature for entry in kept.signatures},
    )
    rejected = {one.participant_id: Rejection(reason=one.reason, detail=one.detail) for one in kept.rejected}
    state = close(Open(terms=terms, requests={}, answered=frozenset(survivors), rejected=rejected, progress=masking))
    if not isinstance(state, Open):
        raise IntegrityFailed("Expected a pending sum that can go on, found one that would be aborted.")
    return state


def _members(kept: _PendingSum, roster: Roster, terms: SignedTerms) -> Members:
    channel = AgreementKey(terms.channel_seed.value)
    adverts = dict(zip(roster.members, kept.adverts, strict=True))
    keys = {member: key for member, advert in adverts.items() if (key := reply_key(channel, advert, terms.context))}
    if len(keys) != len(roster.members):
        raise IntegrityFailed("Expected a pending sum with usable keys of every member, found others.")
    return Members(roster=roster, request=kept.roster, adverts=adverts, reply_keys=keys)
