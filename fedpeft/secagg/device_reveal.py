"""The device's last stages: agree on the survivors, then reveal (docs/protocol.md, "CONSIST" and "REVEAL")."""

import numpy as np

from fedpeft.ids import ParticipantId
from fedpeft.secagg.device_mask import subset_with_us
from fedpeft.secagg.device_secrets import Violation, roster_of
from fedpeft.secagg.device_state import Agreed, Closed, Masked
from fedpeft.secagg.messages import ConsistRequest, ConsistTags, Reason, RevealedShares, RevealRequest
from fedpeft.secagg.primitives import KEY_SIZE, TAG_SIZE, authenticate, equal
from fedpeft.secagg.roster import Roster, members_of
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.transcript import STAGE_CONSIST, STAGE_REVEAL, survivors_context, vouch

__all__ = ["ABSENT_SHARE", "consist", "reveal"]

ABSENT_SHARE = b"\xff" * SHARE_SIZE
"""No field element: stands for a share that this device never got."""


def consist(state: Masked, request: ConsistRequest) -> Agreed:
    """Vouches for the survivor set, to each surviving neighbour: from here on there is no other."""
    roster = roster_of(state.seat, state.roster)
    survivors = _survivors(state, roster, request.survivors)
    context, me = survivors_context(state.reply.context, request.survivors), state.seat.me
    channels = _channels(state, roster)
    tags = b"".join(vouch(channels[peer], context, me, peer) for peer in channels if peer in survivors)
    return Agreed(
        seat=state.seat,
        channels=state.channels,
        reply_key=state.reply_key,
        asked=context,
        roster=state.roster,
        peers=state.peers,
        sharers=state.sharers,
        survivors=request.survivors,
        held=state.held,
        reply=ConsistTags(
            context=context, tags=tags, tag=authenticate(state.reply_key.value, STAGE_CONSIST, [context, tags])
        ),
    )


def reveal(state: Masked | Agreed, request: RevealRequest) -> Closed:
    """Reveals of each neighbour its self-mask shares or its key share, never both, and forgets them all."""
    seat, roster = state.seat, roster_of(state.seat, state.roster)
    survivors = _survivors(state, roster, request.survivors)
    context = survivors_context(request.context, request.survivors)
    if isinstance(state, Agreed):
        if request.survivors != state.survivors:
            raise Violation(Reason.EQUIVOCATION, "Expected the survivor set that we vouched for, found another one.")
        _check_agreement(state, roster, survivors, request, context)
    sharers = frozenset(members_of(state.sharers, roster.members) or ())
    opened = _opened_blocks(state, roster, survivors)
    dealers = [peer for peer in roster.sharing_neighbours(seat.me) if peer in sharers]
    shares: list[bytes] = []
    for dealer, box in zip(dealers, state.held, strict=True):
        owned = roster.owned_by(dealer)
        wanted = [i for i, block in enumerate(owned, 1) if block in opened] if dealer in survivors else [0]
        shares.extend(box.value[SHARE_SIZE * i : SHARE_SIZE * (i + 1)] or ABSENT_SHARE for i in wanted)
    flags = np.packbits([index in opened for index in range(len(roster.owners))]).tobytes()
    revealed = b"".join(shares)
    tag = authenticate(state.reply_key.value, STAGE_REVEAL, [context, flags, revealed])
    return Closed(
        seat=seat, asked=context, reply=RevealedShares(context=context, opened=flags, shares=revealed, tag=tag)
    )


def _survivors(state: Masked | Agreed, roster: Roster, bitmap: bytes) -> frozenset[ParticipantId]:
    """U3: part of U2, with us, and enough of our neighbours in it."""
    survivors = subset_with_us(bitmap, roster, state.seat)
    if not survivors <= set(members_of(state.sharers, roster.members) or ()):
        raise Violation(Reason.BAD_ROSTER, "Expected survivors among those who shared, found others.")
    alive = survivors.intersection(roster.sharing_neighbours(state.seat.me))
    if len(alive) < roster.degree.threshold:
        raise Violation(
            Reason.TOO_FEW_DEVICES, f"Expected {roster.degree.threshold} surviving neighbours, found {len(alive)}."
        )
    return survivors


def _check_agreement(
    state: Agreed, roster: Roster, survivors: frozenset[ParticipantId], request: RevealRequest, context: bytes
) -> None:
    """A threshold of our neighbours vouch for the very same survivor set."""
    vouchers, channels, me = request.vouchers, _channels(state, roster), state.seat.me
    if len(request.tags) != TAG_SIZE * len(vouchers):
        raise Violation(Reason.BAD_LENGTH, f"Expected {len(vouchers)} tags of {TAG_SIZE} bytes.")
    good = {
        peer
        for index, peer in enumerate(vouchers)
        if peer in survivors
        and peer in channels
        and equal(request.tags[TAG_SIZE * index : TAG_SIZE * (index + 1)], vouch(channels[peer], context, peer, me))
    }
    if len(good) < roster.degree.threshold:
        raise Violation(
            Reason.BAD_AGREEMENT,
            f"Expected {roster.degree.threshold} neighbours to vouch for these survivors, found {len(good)}.",
        )


def _channels(state: Masked | Agreed, roster: Roster) -> dict[ParticipantId, bytes]:
    """The secret shared with each sharing neighbour, ascending."""
    blob = state.channels.value
    peers = roster.sharing_neighbours(state.seat.me)
    return {peer: blob[KEY_SIZE * index : KEY_SIZE * (index + 1)] for index, peer in enumerate(peers)}


def _opened_blocks(state: Masked | Agreed, roster: Roster, survivors: frozenset[ParticipantId]) -> frozenset[int]:
    """Blocks of which enough organisations survive, counting only devices whose advert we verified."""
    verified = survivors.intersection([state.seat.me, *(advert.participant_id for advert in state.peers)])
    people, opened = roster.spec.participants, set()
    for index, owners in enumerate(roster.owner_sets):
        organisations = {people[member - 1].organisation for member in verified & owners}
        if len(organisations) >= state.seat.min_cohort and roster.enough_survive(index, survivors):
            opened.add(index)
    return frozenset(opened)
