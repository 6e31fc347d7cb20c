"""What the coordinator does when a stage ends: fix who is in, and ask the next question (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from fedpeft.ids import ParticipantId
from fedpeft.secagg.coordinator_state import (
    Aborted,
    Agreeing,
    CoordinatorState,
    Fitting,
    Masking,
    Members,
    Open,
    Progress,
    Rejection,
    Revealing,
    Sharing,
    aborted,
)
from fedpeft.secagg.messages import (
    Advertise,
    ConsistRequest,
    MaskRequest,
    Reason,
    Request,
    RevealRequest,
    ShareRequest,
)
from fedpeft.secagg.primitives import TAG_SIZE, AgreementKey, Secret, hkdf
from fedpeft.secagg.roster import Roster, pack_members, read_roster
from fedpeft.secagg.spec import Mode, block_encoding
from fedpeft.secagg.transcript import advert_digest, id_bytes, sharers_context, survivors_context
from fedpeft.secagg.unmask import cohort_problem, unmask

__all__ = ["close"]

WITNESSES_PER_COHORT = 3
"""Owners whose adverts every device gets, as a multiple of the minimum cohort: a third of them may drop out twice."""


def close(state: Open) -> CoordinatorState:
    """The next stage, or the end of the round."""
    match state.progress:
        case Fitting() as fitting:
            return _to_sharing(state, fitting)
        case Sharing() as sharing:
            return _to_masking(state, sharing)
        case Masking() as masking:
            return _to_survivors(state, masking)
        case Agreeing() as agreeing:
            return _to_revealing(state, agreeing)
        case Revealing() as revealing:
            return unmask(state, revealing)
        case _:
            assert_never(state.progress)


def _to_sharing(state: Open, fitting: Fitting) -> CoordinatorState:
    spec, book = state.book.spec, state.book
    channel = AgreementKey(book.channel_seed.value)
    reply_keys, rejected = {}, dict(state.rejected)
    for member, advert in sorted(fitting.adverts.items()):
        shared = channel.agree(advert.channel_key)
        if shared is None:
            rejected[member] = Rejection(reason=Reason.BAD_ROSTER, detail="its channel key is a low-order point")
        else:
            reply_keys[member] = Secret(hkdf(shared, book.context, "reply"))
    state = replace(state, rejected=rejected)
    if not reply_keys:
        return aborted(state, Reason.TOO_FEW_DEVICES, "No device advertised.", restartable=True)
    members = list(reply_keys)
    request = ShareRequest(
        context=book.context,
        members=b"".join(map(id_bytes, members)),
        digests=b"".join(advert_digest(fitting.adverts[member]) for member in members),
        owners=tuple(
            pack_members({m for m in members if block.block_id in fitting.adverts[m].blocks}, members)
            for block in spec.blocks
        ),
        adverts=(),
    )
    roster = read_roster(book.offer, request)
    if isinstance(roster, str):
        return aborted(state, Reason.TOO_FEW_DEVICES, roster, restartable=True)
    witnesses = _witnesses(roster)

    def for_member(member: ParticipantId) -> ShareRequest:
        needed = witnesses.union(
            roster.sharing_neighbours(member),
            *(roster.masking_neighbours(member, block) for block in roster.owned_by(member)),
        )
        adverts: tuple[Advertise, ...] = tuple(fitting.adverts[m] for m in sorted(needed - {member}))
        return replace(request, adverts=adverts)

    known = Members(roster=roster, request=request, adverts=fitting.adverts, reply_keys=reply_keys)
    return _next(state, {member: for_member(member) for member in members}, Sharing(members=known))


def _witnesses(roster: Roster) -> frozenset[ParticipantId]:
    """Owners of every block, of different organisations, whom everybody gets to verify and may count in a cohort."""
    people, wanted = roster.spec.participants, WITNESSES_PER_COHORT * roster.spec.min_cohort
    chosen: set[ParticipantId] = set()
    for owners in roster.owners:
        organisations: dict[str, ParticipantId] = {}
        for owner in owners:
            organisations.setdefault(people[owner - 1].organisation, owner)
        chosen.update(list(organisations.values())[:wanted])
    return frozenset(chosen)


def _to_masking(state: Open, sharing: Sharing) -> CoordinatorState:
    roster, boxes = sharing.members.roster, sharing.boxes
    if len(boxes) <= roster.degree.threshold:
        return _too_few(state, roster, len(boxes), restartable=True)
    inbox: dict[ParticipantId, list[bytes]] = {holder: [] for holder in boxes}
    for dealer in sorted(boxes):
        size, sealed = roster.box_size(dealer), boxes[dealer]
        for index, holder in enumerate(roster.sharing_neighbours(dealer)):
            if holder in inbox:
                inbox[holder].append(sealed[size * index : size * (index + 1)])
    sharers = pack_members(boxes.keys(), roster.members)
    masking = Masking(
        members=sharing.members,
        sharers=sharers,
        sums={block.block_id: block_encoding(roster.spec, block).zeros() for block in roster.spec.blocks},
    )
    requests = {
        holder: MaskRequest(context=roster.context, sharers=sharers, boxes=tuple(inbox[holder])) for holder in boxes
    }
    return _next(state, requests, masking)


def _to_survivors(state: Open, masking: Masking) -> CoordinatorState:
    roster, survivors = masking.members.roster, state.answered
    threshold = roster.degree.threshold
    if len(survivors) <= threshold:
        return _too_few(state, roster, len(survivors), restartable=True)
    problems = [cohort_problem(roster, index, survivors) for index in range(len(roster.owners))]
    if all(problem is not None for problem in problems):
        return aborted(state, Reason.COHORT_TOO_SMALL, f"No block can be opened: {problems[0]}.", restartable=True)
    lost = [
        dealer
        for dealer, holders in masking.unopened.items()
        if len(survivors.intersection(roster.sharing_neighbours(dealer)) - holders) < threshold
    ]
    if lost:
        detail = f"Too few neighbours could open the boxes of {sorted(lost)}: their masks could not be removed."
        return aborted(state, Reason.SECRET_LOST, detail, blamed=lost, restartable=True)
    context = sharers_context(roster.context, masking.sharers)
    bitmap = pack_members(survivors, roster.members)
    if roster.spec.mode is Mode.FULL:
        question = ConsistRequest(context=context, survivors=bitmap)
        return _next(
            state, dict.fromkeys(survivors, question), Agreeing(masked=masking, survivors=survivors, bitmap=bitmap)
        )
    order = RevealRequest(context=context, survivors=bitmap, vouchers=(), tags=b"")
    revealing = Revealing(masked=masking, survivors=survivors, context=survivors_context(context, bitmap))
    return _next(state, dict.fromkeys(survivors, order), revealing)


def _to_revealing(state: Open, agreeing: Agreeing) -> CoordinatorState:
    roster = agreeing.masked.members.roster
    threshold, context = roster.degree.threshold, sharers_context(roster.context, agreeing.masked.sharers)
    vouchers: dict[ParticipantId, list[ParticipantId]] = {member: [] for member in agreeing.tags}
    inbox: dict[ParticipantId, list[bytes]] = {member: [] for member in agreeing.tags}
    for voucher, tags in sorted(agreeing.tags.items()):
        place = 0
        for peer in roster.sharing_neighbours(voucher):
            if peer in inbox:
                vouchers[peer].append(voucher)
                inbox[peer].append(tags[place : place + TAG_SIZE])
            place += TAG_SIZE * (peer in agreeing.survivors)
    requests = {
        member: RevealRequest(
            context=context, survivors=agreeing.bitmap, vouchers=tuple(vouchers[member]), tags=b"".join(inbox[member])
        )
        for member in inbox
        if len(inbox[member]) >= threshold
    }
    if len(requests) < threshold:
        return _too_few(state, roster, len(requests), restartable=False)
    revealing = Revealing(
        masked=agreeing.masked,
        survivors=agreeing.survivors,
        context=survivors_context(context, agreeing.bitmap),
    )
    return _next(state, requests, revealing)


def _next(state: Open, requests: Mapping[ParticipantId, Request], progress: Progress) -> Open:
    return replace(state, requests=requests, answered=frozenset(), progress=progress)


def _too_few(state: Open, roster: Roster, found: int, *, restartable: bool) -> Aborted:
    detail = (
        f"Expected more than {roster.degree.threshold} of {len(roster.members)} devices, found {found}; "
        "wait for more devices or raise dropout_fraction."
    )
    return aborted(state, Reason.TOO_FEW_DEVICES, detail, restartable=restartable)
