"""What the coordinator does when a stage ends: fix who is in, and ask the next question (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from fedpeft.ids import ParticipantId
from fedpeft.secagg.cohort import cohort_problem, quorum
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
    Requests,
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
from fedpeft.secagg.primitives import AgreementKey, Secret, hkdf
from fedpeft.secagg.roster import Roster, pack_members, read_roster
from fedpeft.secagg.spec import Mode, block_encoding
from fedpeft.secagg.transcript import (
    NeighbourKeys,
    advert_digest,
    advert_tree,
    path_in,
    sharers_context,
    survivors_context,
)
from fedpeft.secagg.unmask import unmask

__all__ = ["close", "reply_key"]


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
    spec, terms = state.terms.spec, state.terms
    channel = AgreementKey(terms.channel_seed.value)
    reply_keys, rejected = {}, dict(state.rejected)
    for member, advert in sorted(fitting.adverts.items()):
        key = reply_key(channel, advert, terms.context)
        if key is None:
            rejected[member] = Rejection(reason=Reason.BAD_ROSTER, detail="its channel key is a low-order point")
        else:
            reply_keys[member] = key
    state = replace(state, rejected=rejected)
    if not reply_keys:
        return aborted(state, Reason.TOO_FEW_DEVICES, "No device advertised.", restartable=True)
    members = list(reply_keys)
    tree = advert_tree([advert_digest(fitting.adverts[member]) for member in members])
    request = ShareRequest(
        context=terms.context,
        members=pack_members(reply_keys, [peer.participant_id for peer in spec.participants]),
        root=tree[-1][0],
        classes=bytes(fitting.adverts[member].weight_class for member in members),
        owners=tuple(
            pack_members({m for m in members if block.block_id in fitting.adverts[m].blocks}, members)
            for block in spec.blocks
        ),
        neighbours=b"",
        path=b"",
    )
    roster = read_roster(terms.offer, request)
    if isinstance(roster, str):
        return aborted(state, Reason.TOO_FEW_DEVICES, roster, restartable=True)

    def for_member(member: ParticipantId) -> ShareRequest:
        around = roster.neighbours_of(member)
        return replace(
            request,
            neighbours=b"".join(keys[peer] for peer in around),
            path=path_in(tree, [roster.place[peer] for peer in (member, *around)]),
        )

    keys = {member: NeighbourKeys.of(fitting.adverts[member]).pack() for member in members}
    known = Members(roster=roster, request=request, adverts=fitting.adverts, reply_keys=reply_keys)
    return _next(state, Requests(members, for_member), Sharing(members=known))


def reply_key(channel: AgreementKey, advert: Advertise, context: bytes) -> Secret | None:
    """What authenticates a member's replies in this attempt; None for a channel key that is a low-order point."""
    shared = channel.agree(advert.channel_key)
    return None if shared is None else Secret(hkdf(shared, context, "reply"))


def _to_masking(state: Open, sharing: Sharing) -> CoordinatorState:
    roster, ciphertexts = sharing.members.roster, sharing.ciphertexts
    if len(ciphertexts) <= roster.degree.threshold:
        return _too_few(state, roster, len(ciphertexts), restartable=True)
    inbox: dict[ParticipantId, list[bytes]] = {holder: [] for holder in ciphertexts}
    for dealer in sorted(ciphertexts):
        size, sealed = roster.ciphertext_size(dealer), ciphertexts[dealer]
        for index, holder in enumerate(roster.sharing_neighbours(dealer)):
            if holder in inbox:
                inbox[holder].append(sealed[size * index : size * (index + 1)])
    sharers = pack_members(ciphertexts.keys(), roster.members)
    masking = Masking(
        members=sharing.members,
        sharers=sharers,
        sums={block.block_id: block_encoding(roster.spec, block).zeros() for block in roster.spec.blocks},
    )
    requests = {
        holder: MaskRequest(context=roster.context, sharers=sharers, ciphertexts=tuple(inbox[holder]))
        for holder in ciphertexts
    }
    return _next(state, requests, masking)


def _to_survivors(state: Open, masking: Masking) -> CoordinatorState:
    roster, survivors = masking.members.roster, state.answered
    threshold = roster.degree.threshold
    if len(survivors) <= threshold:
        return _too_few(state, roster, len(survivors), restartable=True)
    if roster.spec.mode is Mode.FULL and len(survivors) < quorum(roster):
        return _no_quorum(state, roster, len(survivors), restartable=True)
    problems = [cohort_problem(roster, index, survivors, survivors) for index in range(len(roster.owners))]
    if all(problem is not None for problem in problems):
        return aborted(state, Reason.COHORT_TOO_SMALL, f"No block can be opened: {problems[0]}.", restartable=True)
    lost = [
        dealer
        for dealer, holders in masking.unopened.items()
        if len(survivors.intersection(roster.sharing_neighbours(dealer)) - holders) < threshold
    ]
    if lost:
        detail = f"Too few neighbours could open the ciphertexts of {sorted(lost)}: their masks could not be removed."
        return aborted(state, Reason.SECRET_LOST, detail, blamed=lost, restartable=True)
    context = sharers_context(roster.context, masking.sharers)
    bitmap = pack_members(survivors, roster.members)
    if roster.spec.mode is Mode.FULL:
        question = ConsistRequest(context=context, survivors=bitmap)
        return _next(
            state, dict.fromkeys(survivors, question), Agreeing(masked=masking, survivors=survivors, bitmap=bitmap)
        )
    order = RevealRequest(context=context, survivors=bitmap, signers=b"", signatures=b"", masked=b"")
    revealing = Revealing(
        masked=masking, survivors=survivors, witnesses=survivors, context=survivors_context(context, bitmap)
    )
    return _next(state, dict.fromkeys(survivors, order), revealing)


def _to_revealing(state: Open, agreeing: Agreeing) -> CoordinatorState:
    roster, masked = agreeing.masked.members.roster, agreeing.masked
    if len(agreeing.signatures) < quorum(roster):
        return _no_quorum(state, roster, len(agreeing.signatures), restartable=False)
    if len(agreeing.signatures) < roster.degree.threshold:
        return _too_few(state, roster, len(agreeing.signatures), restartable=False)
    context, witnesses = sharers_context(roster.context, masked.sharers), _witnesses(roster, agreeing)
    shown = RevealRequest(
        context=context,
        survivors=agreeing.bitmap,
        signers=pack_members(witnesses, roster.members),
        signatures=b"".join(agreeing.signatures[member] for member in sorted(witnesses)),
        masked=b"",
    )
    silent = agreeing.survivors - witnesses
    requests: dict[ParticipantId, Request] = {}
    for member in agreeing.signatures:
        dealers = [peer for peer in roster.sharing_neighbours(member) if peer in silent]
        requests[member] = replace(shown, masked=b"".join(masked.signatures[peer] for peer in dealers))
    revealing = Revealing(
        masked=masked,
        survivors=agreeing.survivors,
        witnesses=witnesses,
        context=survivors_context(context, agreeing.bitmap),
    )
    return _next(state, requests, revealing)


def _witnesses(roster: Roster, agreeing: Agreeing) -> frozenset[ParticipantId]:
    """Whose agreement to show: everybody's on a complete graph, where each device must check it in any case.

    Else a quorum, which is half of them, with the cohort of every block that can be opened in it.
    """
    signers = sorted(agreeing.signatures)
    if roster.degree.neighbours == len(roster.members) - 1:
        return frozenset(signers)
    chosen: set[ParticipantId] = set()
    for index in sorted(range(len(roster.owners)), key=lambda index: len(roster.owners[index])):
        if cohort_problem(roster, index, agreeing.survivors, signers) is not None:
            continue  # nobody's agreement would open it
        candidates = iter([member for member in signers if member in roster.owner_sets[index] and member not in chosen])
        while cohort_problem(roster, index, agreeing.survivors, chosen) is not None:
            chosen.add(next(candidates))
    missing = max(0, quorum(roster) - len(chosen))
    return frozenset([*chosen, *[member for member in signers if member not in chosen][:missing]])


def _next(state: Open, requests: Mapping[ParticipantId, Request], progress: Progress) -> Open:
    return replace(state, requests=requests, answered=frozenset(), progress=progress)


def _too_few(state: Open, roster: Roster, found: int, *, restartable: bool) -> Aborted:
    detail = (
        f"Expected more than {roster.degree.threshold} of {len(roster.members)} devices, found {found}; "
        "wait for more devices or raise dropout_fraction."
    )
    return aborted(state, Reason.TOO_FEW_DEVICES, detail, restartable=restartable)


def _no_quorum(state: Open, roster: Roster, found: int, *, restartable: bool) -> Aborted:
    detail = (
        f"Expected {quorum(roster)} of {len(roster.members)} devices to agree on one survivor set, found {found}; "
        "wait for more devices, or lower corrupt_fraction."
    )
    return aborted(state, Reason.TOO_FEW_DEVICES, detail, restartable=restartable)
