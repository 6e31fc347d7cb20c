"""The device's last stages: agree on the survivors, then reveal (docs/protocol.md, "CONSIST" and "REVEAL")."""

import numpy as np

from fedpeft.ids import ParticipantId
from fedpeft.secagg.device_mask import subset_with_us
from fedpeft.secagg.device_secrets import Violation, roster_of
from fedpeft.secagg.device_state import Agreed, Closed, Masked
from fedpeft.secagg.messages import ConsistRequest, ConsistSignature, Reason, RevealedShares, RevealRequest
from fedpeft.secagg.primitives import IdentityKey, authenticate, is_signed
from fedpeft.secagg.roster import Roster, members_of
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.transcript import STAGE_REVEAL, survivors_context

__all__ = ["ABSENT_SHARE", "SIGNATURE_SIZE", "consist", "reveal"]

SIGNATURE_SIZE = 64
ABSENT_SHARE = b"\xff" * SHARE_SIZE
"""No field element: stands for a share that this device never got."""


def consist(state: Masked, request: ConsistRequest) -> Agreed:
    """Signs the survivor set: from here on there is no other."""
    roster = roster_of(state.seat, state.roster)
    _survivors(state, roster, request.survivors)
    context = survivors_context(state.reply.context, request.survivors)
    signature = IdentityKey(state.signing_seed.value).sign(context)
    return Agreed(
        seat=state.seat,
        reply_key=state.reply_key,
        asked=context,
        roster=state.roster,
        peers=state.peers,
        sharers=state.sharers,
        survivors=request.survivors,
        held=state.held,
        reply=ConsistSignature(context=context, signature=signature),
    )


def reveal(state: Masked | Agreed, request: RevealRequest) -> Closed:
    """Reveals of each neighbour its self-mask shares or its key share, never both, and forgets them all."""
    seat, roster = state.seat, roster_of(state.seat, state.roster)
    survivors = _survivors(state, roster, request.survivors)
    context = survivors_context(request.context, request.survivors)
    if isinstance(state, Agreed):
        if request.survivors != state.survivors:
            raise Violation(Reason.EQUIVOCATION, "Expected the survivor set that was signed, found another one.")
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
    """A threshold of our neighbours signed the very same survivor set."""
    signers, needed = request.signers, roster.degree.threshold
    allowed = survivors.intersection(roster.sharing_neighbours(state.seat.me))
    if len(set(signers)) != len(signers) or not allowed.issuperset(signers) or len(signers) < needed:
        raise Violation(Reason.BAD_AGREEMENT, f"Expected {needed} signatures of our neighbours, found {len(signers)}.")
    if len(request.signatures) != SIGNATURE_SIZE * len(signers):
        raise Violation(Reason.BAD_LENGTH, f"Expected {len(signers)} signatures of {SIGNATURE_SIZE} bytes.")
    keys = {advert.participant_id: advert.signing_key for advert in state.peers}
    for index, signer in enumerate(signers):
        signature = request.signatures[SIGNATURE_SIZE * index : SIGNATURE_SIZE * (index + 1)]
        if not is_signed(keys[signer], signature, context):
            raise Violation(Reason.BAD_AGREEMENT, f"Expected the signature of {signer} over these survivors.")


def _opened_blocks(state: Masked | Agreed, roster: Roster, survivors: frozenset[ParticipantId]) -> frozenset[int]:
    """Blocks of which enough organisations survive, counting only devices whose advert we verified."""
    verified = survivors.intersection([state.seat.me, *(advert.participant_id for advert in state.peers)])
    people, opened = roster.spec.participants, set()
    for index, owners in enumerate(roster.owner_sets):
        organisations = {people[member - 1].organisation for member in verified & owners}
        if len(organisations) >= state.seat.min_cohort and roster.enough_survive(index, survivors):
            opened.add(index)
    return frozenset(opened)
