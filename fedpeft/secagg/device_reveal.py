"""The device's last stages: agree on the survivors, then reveal (docs/protocol.md, "CONSIST" and "REVEAL")."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.ids import BlockId, ParticipantId, SizeClass
from fedpeft.secagg.cohort import cohort_problem, quorum
from fedpeft.secagg.device_mask import subset_with_us
from fedpeft.secagg.device_state import Agreed, Closed, Masked, Violation, roster_of
from fedpeft.secagg.messages import Agreement, ConsistRequest, Reason, RevealedShares, RevealRequest
from fedpeft.secagg.primitives import SIGNATURE_SIZE, IdentityKey, authenticate, is_signed
from fedpeft.secagg.roster import Roster, members_of
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.spec import RoundSpec
from fedpeft.secagg.transcript import STAGE_CONSIST, STAGE_REVEAL, agreement_digest, masked_digest, survivors_context

__all__ = ["ABSENT_SHARE", "AgreedSum", "agreed_sum", "consist", "reveal"]

ABSENT_SHARE = b"\xff" * SHARE_SIZE
"""No field element: stands for a share that this device never got."""


def consist(state: Masked, request: ConsistRequest, identity: IdentityKey) -> Agreed:
    """Signs the survivor set, and by its context the sharers and the roster: from here on there is no other."""
    roster = roster_of(state.participation, state.roster)
    _survivors(state, roster, request.survivors)
    context, me = survivors_context(state.reply.context, request.survivors), state.participation.me
    signature = identity.sign(agreement_digest(context, me))
    return Agreed(
        participation=state.participation,
        reply_key=state.reply_key,
        asked=context,
        roster=state.roster,
        sharers=state.sharers,
        survivors=request.survivors,
        held_shares=state.held_shares,
        reply=Agreement(
            context=context,
            signature=signature,
            tag=authenticate(state.reply_key.value, STAGE_CONSIST, [context, signature]),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedSum:
    """A sum as a device has signed for it; all of it is public.

    Args:
        spec: the terms.
        context: of the survivor set (C3).
        weight_classes: of each survivor.
        owners: of each block of the terms the survivors that own it.
    """

    spec: RoundSpec
    context: bytes
    weight_classes: Mapping[ParticipantId, SizeClass]
    owners: Mapping[BlockId, frozenset[ParticipantId]]


def agreed_sum(state: Agreed) -> AgreedSum:
    """What this device has signed for."""
    roster = roster_of(state.participation, state.roster)
    survivors = frozenset(members_of(state.survivors, roster.members) or ())
    return AgreedSum(
        spec=roster.spec,
        context=state.asked,
        weight_classes={member: roster.classes[roster.place[member]] for member in sorted(survivors)},
        owners={
            block.block_id: survivors & owners
            for block, owners in zip(roster.spec.blocks, roster.owner_sets, strict=True)
        },
    )


def reveal(state: Masked | Agreed, request: RevealRequest) -> Closed:
    """Reveals of each neighbour its self-mask shares or its key share, never both, and forgets them all."""
    participation, roster = state.participation, roster_of(state.participation, state.roster)
    survivors = _survivors(state, roster, request.survivors)
    context = survivors_context(request.context, request.survivors)
    witnesses = survivors  # fast mode: the coordinator is trusted with the roster and the survivors
    if isinstance(state, Agreed):
        if request.survivors != state.survivors:
            raise Violation(Reason.EQUIVOCATION, "Expected the survivor set that we signed, found another one.")
        witnesses = _witnesses(participation.me, roster, survivors, request, context)
        _expect_masked(participation.me, roster, survivors - witnesses, request)
    sharers = frozenset(members_of(state.sharers, roster.members) or ())
    opened = _opened_blocks(state, roster, survivors, witnesses)
    dealers = [peer for peer in roster.sharing_neighbours(participation.me) if peer in sharers]
    shares: list[bytes] = []
    for dealer, held in zip(dealers, state.held_shares, strict=True):
        owned = roster.owned_by(dealer)
        needed = [i for i, block in enumerate(owned, 1) if block in opened] if dealer in survivors else [0]
        shares.extend(held.value[SHARE_SIZE * i : SHARE_SIZE * (i + 1)] or ABSENT_SHARE for i in needed)
    flags = np.packbits([index in opened for index in range(len(roster.owners))]).tobytes()
    revealed = b"".join(shares)
    tag = authenticate(state.reply_key.value, STAGE_REVEAL, [context, flags, revealed])
    return Closed(
        participation=participation,
        asked=context,
        reply=RevealedShares(context=context, opened=flags, shares=revealed, tag=tag),
    )


def _survivors(state: Masked | Agreed, roster: Roster, bitmap: bytes) -> frozenset[ParticipantId]:
    """U3: part of U2, with us, and enough of our neighbours in it."""
    survivors = subset_with_us(bitmap, roster, state.participation)
    if not survivors <= set(members_of(state.sharers, roster.members) or ()):
        raise Violation(Reason.BAD_ROSTER, "Expected survivors among those who shared, found others.")
    alive = survivors.intersection(roster.sharing_neighbours(state.participation.me))
    if len(alive) < roster.degree.threshold:
        raise Violation(
            Reason.TOO_FEW_DEVICES, f"Expected {roster.degree.threshold} surviving neighbours, found {len(alive)}."
        )
    return survivors


def _witnesses(
    me: ParticipantId,
    roster: Roster,
    survivors: frozenset[ParticipantId],
    request: RevealRequest,
    context: bytes,
) -> frozenset[ParticipantId]:
    """A quorum of survivors, ourselves among them, each of whom signed this very survivor set."""
    signers = members_of(request.signers, roster.members)
    if signers is None or not survivors.issuperset(signers):
        raise Violation(Reason.BAD_AGREEMENT, "Expected signers among the survivors, found others.")
    others = [member for member in signers if member != me]
    witnesses = frozenset([me, *others])
    if len(witnesses) < quorum(roster):
        raise Violation(
            Reason.BAD_AGREEMENT,
            f"Expected {quorum(roster)} members to sign these survivors, found {len(witnesses)}.",
        )
    _expect_signed(roster, signers, request.signatures, lambda member: agreement_digest(context, member), but=me)
    return witnesses


def _expect_masked(me: ParticipantId, roster: Roster, silent: frozenset[ParticipantId], request: RevealRequest) -> None:
    """Every surviving neighbour masked for the sharers that we masked for.

    A signature of the survivors says so, since its context hashes the sharers; whoever did not sign those must have
    signed the sharers. Else a device that was shown other sharers alone would stand there without its pair masks.
    """
    dealers = [peer for peer in roster.sharing_neighbours(me) if peer in silent]
    _expect_signed(roster, dealers, request.masked, lambda member: masked_digest(request.context, member))


def _expect_signed(
    roster: Roster,
    members: Iterable[ParticipantId],
    signatures: bytes,
    text: Callable[[ParticipantId], bytes],
    but: ParticipantId | None = None,
) -> None:
    """One valid signature per member, in order; our own we need not look at."""
    people, members = roster.spec.participants, tuple(members)
    if len(signatures) != SIGNATURE_SIZE * len(members):
        raise Violation(Reason.BAD_LENGTH, f"Expected {len(members)} signatures of {SIGNATURE_SIZE} bytes.")
    for index, member in enumerate(members):
        signature = signatures[SIGNATURE_SIZE * index : SIGNATURE_SIZE * (index + 1)]
        if member != but and not is_signed(people[member - 1].identity, signature, text(member)):
            raise Violation(Reason.BAD_AGREEMENT, f"Expected {member} to have signed what we saw, found it did not.")


def _opened_blocks(
    state: Masked | Agreed,
    roster: Roster,
    survivors: frozenset[ParticipantId],
    witnesses: frozenset[ParticipantId],
) -> frozenset[int]:
    """Blocks in which enough organisations are witnesses, and that chosen drop-outs cannot have cut."""
    floors = {"min_cohort": state.participation.min_cohort, "min_colluders": state.participation.min_colluders}
    return frozenset(
        index
        for index in range(len(roster.owners))
        if cohort_problem(roster, index, survivors, witnesses, **floors) is None
    )
