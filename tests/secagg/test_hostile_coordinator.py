"""A coordinator that cheats: every way known to us, and what the device answers.

The coordinator here signs whatever it likes with its real key, sees every message and may collude with devices; a
device must refuse before it reveals anything that lets one honest input be told from the sum.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    Aborted,
    Advertise,
    Agreement,
    ConsistRequest,
    CoordinatorState,
    DevicePolicy,
    DeviceSession,
    IdentityKey,
    MaskedInput,
    Mode,
    Open,
    Participant,
    Reason,
    Refusal,
    RevealedShares,
    RevealRequest,
    RoundOffer,
    RoundSpec,
    ShareRequest,
    Summed,
    SummedBlock,
    begin,
    close_stage,
    open_round,
    receive,
)
from fedpeft.secagg.cohort import cohort_problem, quorum
from fedpeft.secagg.coordinator_close import _witnesses
from fedpeft.secagg.coordinator_state import Agreeing
from fedpeft.secagg.graph import MOST_NEIGHBOURS, Degree
from fedpeft.secagg.offer import RosterRows, encode_spec, open_terms, roster_digest
from fedpeft.secagg.primitives import AgreementKey
from fedpeft.secagg.roster import Roster, pack_members, read_roster
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.spec import MAX_WEIGHT_CLASS
from fedpeft.secagg.transcript import (
    NeighbourKeys,
    advert_digest,
    advert_tree,
    agreement_digest,
    offer_context,
    roster_context,
    survivors_context,
)
from fedpeft.testing.secagg import Op, Round, run_round
from fedpeft.testing.secagg_fleet import Fleet, make_fleet, make_spec
from fedpeft.wire import WireError, encode

ONE = ParticipantId(1)
EVERYBODY = tuple(ParticipantId(i) for i in range(1, 8))


def a_round(devices: int = 7, **changes: object) -> Round:
    fleet = make_fleet(devices)
    return Round(fleet=fleet, spec=make_spec(fleet, **changes))


def refused(reply: object, reason: Reason) -> bool:
    assert isinstance(reply, Refusal), reply
    assert reply.reason is reason, reply
    return True


def offered(fleet: Fleet, spec: RoundSpec, policy: DevicePolicy) -> object:
    offer = open_round(spec, identity=fleet.coordinator, entropy=os_entropy).requests[ONE]
    return begin(
        offer,
        owns=frozenset({BlockId("b")}),
        identity=fleet.identities[0],
        enrolled=fleet.enrolled(ONE),
        policy=policy,
        entropy=os_entropy,
    ).reply


# FIT: the terms


def test_terms_signed_by_another_key_are_refused() -> None:
    fleet = make_fleet(5)
    forged = replace(fleet, coordinator=IdentityKey.generate(os_entropy))
    refused(offered(forged, make_spec(fleet), fleet.policy), Reason.BAD_SIGNATURE)


def test_changed_terms_are_refused() -> None:
    a = a_round()
    offer = a.open().requests[ONE]
    weaker = replace(a.spec, min_cohort=4)
    for changed in (replace(offer, spec=encode_spec(weaker)[0]), replace(offer, coordinator_channel=bytes(32))):
        refused(a.ask(ONE, changed), Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ({"allow_fast": False}, {"mode": Mode.FAST}),
        ({"min_corrupt_fraction": 0.1}, {"corrupt_fraction": 0.0}),
        ({"min_cohort": 4}, {"min_cohort": 3}),
        ({"min_colluders": 2}, {"corrupt_fraction": 0.2}),
        (
            {"min_levels": 100},
            {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1.0),), bits=8),)},
        ),
        (
            {"min_max_abs": 1e-3},
            {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1e-6),)),)},
        ),
    ],
    ids=["no-consistency", "nobody-colludes", "small-cohort", "few-collude", "small-ring", "tiny-range"],
)
def test_terms_weaker_than_the_site_allows_are_refused(policy: dict, changes: dict) -> None:
    fleet = make_fleet(5)
    refused(offered(fleet, make_spec(fleet, **changes), replace(fleet.policy, **policy)), Reason.POLICY)


class Acquaintances:
    """A directory that knows some devices, and counts the others."""

    def __init__(self, known: int, objection: str | None = None) -> None:
        self.known, self.objection, self.asked = known, objection, 0

    def admit(self, roster: Sequence[Participant]) -> int | str:
        self.asked += 1
        return self.objection or len(roster) - self.known


def with_directory(fleet: Fleet, directory: Acquaintances) -> Round:
    for member in EVERYBODY:
        fleet.sessions[member] = DeviceSession(
            ledger=fleet.ledgers[member],
            identity=fleet.identities[member - 1],
            enrolled=fleet.enrolled(member),
            policy=fleet.policy,
            directory=directory,
        )
    return Round(fleet=fleet, spec=make_spec(fleet))


def test_a_roster_that_the_sites_directory_contradicts_is_refused() -> None:
    a = with_directory(make_fleet(7), Acquaintances(7, "another key"))
    refused(a.ask(ONE, a.open().requests[ONE]), Reason.POLICY)


def test_unconfirmed_devices_count_as_colluders() -> None:
    """Of 7 devices one may collude: with two that nobody has confirmed the terms do not hold against them."""
    assert isinstance(with_directory(make_fleet(7), Acquaintances(6)).run(), Summed)
    a = with_directory(make_fleet(7), Acquaintances(5))
    refused(a.ask(ONE, a.open().requests[ONE]), Reason.POLICY)


def test_the_directory_is_asked_only_about_signed_terms() -> None:
    """Else anybody could fill it."""
    directory = Acquaintances(7)
    a = with_directory(make_fleet(7), directory)
    forged = replace(a.open().requests[ONE], signature=bytes(64))
    refused(a.ask(ONE, forged), Reason.BAD_SIGNATURE)
    assert directory.asked == 0


def test_there_is_no_threshold_or_degree_to_propose() -> None:
    """Both follow from the fractions; a coordinator cannot ask for threshold 1 or for no neighbours."""
    assert not {"threshold", "degree", "neighbours"} & set(RoundSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    "change",
    [
        {"min_cohort": 2},
        {"attempt": 0},
        {"corrupt_fraction": 0.5},
        {"dropout_fraction": -0.1},
        {"stage_deadline_s": 0.0},
        {"stage_deadline_s": 2_592_001.0},
        {"stage_deadline_s": 1e300},
        {"blocks": ()},
        {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1.0),), bits=2),)},
    ],
    ids=lambda change: next(f"{name}={value}"[:40] for name, value in change.items()),
)
def test_terms_that_contradict_themselves_are_refused_even_if_signed(change: dict) -> None:
    fleet = make_fleet(5)
    offer = _sign_anything(fleet, make_spec(fleet, **change))
    step = begin(
        offer,
        owns=frozenset({BlockId("b")}),
        identity=fleet.identities[0],
        enrolled=fleet.enrolled(ONE),
        policy=fleet.policy,
        entropy=os_entropy,
    )
    refused(step.reply, Reason.BAD_TERMS)


@pytest.mark.parametrize("roster", ["two", "device-twice", "key-twice"])
def test_a_roster_that_contradicts_itself_is_refused(roster: str) -> None:
    fleet = make_fleet(5)
    people = list(make_spec(fleet).participants)
    match roster:
        case "two":
            people = people[:2]
        case "device-twice":
            people[4] = replace(people[4], device=people[3].device)
        case "key-twice":
            people[4] = replace(people[4], identity=people[3].identity)
    refused(begun(fleet, _sign_anything(fleet, make_spec(fleet, participants=tuple(people)))), Reason.BAD_TERMS)


@pytest.mark.parametrize(
    "change",
    [
        {"identities": bytes(32 * 4)},
        {"identities": bytes(32 * 5 - 1)},
        {"lengths": bytes(4 * 4)},
        {"lengths": bytes(4 * 5 - 1)},
        {"lengths": b"\0\0\0\1" * 5},
        {"names": b""},
        {"names": b"\xff" * 5},
        {"identities": b"".join(key.public for key in make_fleet(5).identities) + bytes(32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_that_are_no_roster_are_refused_even_if_their_digest_is_signed(change: dict) -> None:
    """Five devices, whose names and organisations are a letter each, but for the organisations: those are empty."""
    fleet = make_fleet(5)
    identities = b"".join(key.public for key in fleet.identities)
    good = RosterRows(identities=identities, lengths=b"\0\1\0\0" * 5, names=b"abcde")
    terms = open_terms(encode_spec(make_spec(fleet))[0])

    def reason(rows: bytes) -> Reason:
        signed = encode(replace(terms, roster=roster_digest(rows)))
        return begun(fleet, signed_offer(fleet, signed, rows)).reason

    assert reason(encode(good)) is Reason.BAD_ROSTER, "it can be read, and names this device otherwise"
    assert reason(encode(replace(good, **change))) is Reason.BAD_TERMS
    assert reason(encode(good) + b"x") is Reason.BAD_TERMS


@pytest.mark.parametrize(
    "change", [{"participant_id": ParticipantId(9)}, {"identity": b"short"}, {"device": "n" * 65_536}], ids=str
)
def test_terms_whose_roster_cannot_be_written_are_not_opened(change: dict) -> None:
    fleet = make_fleet(5)
    spec = make_spec(fleet)
    with pytest.raises(WireError):
        encode_spec(replace(spec, participants=(*spec.participants[:4], replace(spec.participants[4], **change))))


def test_another_roster_than_the_signed_one_is_refused_and_none_is_asked_for() -> None:
    fleet = make_fleet(7)
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    other = encode_spec(make_spec(make_fleet(7, seed=1)))[1]
    refused(begun(fleet, replace(offer, roster=other)), Reason.BAD_TERMS)
    refused(begun(fleet, replace(offer, roster=b"")), Reason.MISSING_ROSTER)
    stranger = replace(fleet, coordinator=make_fleet(7, seed=1).coordinator)
    forged = Round(fleet=stranger, spec=make_spec(fleet)).open().requests[ONE]
    refused(begun(fleet, replace(forged, roster=b"")), Reason.BAD_SIGNATURE)


def begun(fleet: Fleet, offer: RoundOffer) -> object:
    return begin(
        offer,
        owns=frozenset({BlockId("b")}),
        identity=fleet.identities[0],
        enrolled=fleet.enrolled(ONE),
        policy=fleet.policy,
        entropy=os_entropy,
    ).reply


def _sign_anything(fleet: Fleet, spec: RoundSpec) -> RoundOffer:
    return signed_offer(fleet, *encode_spec(spec))


def signed_offer(fleet: Fleet, terms: bytes, roster: bytes) -> RoundOffer:
    channel = AgreementKey(b"c" * 32).public
    unsigned = RoundOffer(spec=terms, roster=roster, coordinator_channel=channel, signature=b"")
    return replace(unsigned, signature=fleet.coordinator.sign(offer_context(unsigned)))


# SHARE: the roster


def share_request() -> tuple[Round, ShareRequest]:
    a = a_round()
    return a, a.reach("share").requests[ONE]


def adverts_of(a: Round) -> dict[ParticipantId, Advertise]:
    """What the devices advertised, as the coordinator has them."""
    return {member: a.fleet.ledgers[member].load("run").reply for member in EVERYBODY}


def with_advert(
    a: Round, request: ShareRequest, advert: Advertise, relist: bool = True, signed: bool = False
) -> ShareRequest:
    """The request to device 1 with one advert replaced, in the tree too; signed by its device, who colludes."""
    if signed:
        advert = replace(advert, signature=a.fleet.identities[advert.participant_id - 1].sign(advert_digest(advert)))
    listed = adverts_of(a) | {advert.participant_id: advert}
    keys = b"".join(NeighbourKeys.of(listed[member]).pack() for member in EVERYBODY[1:])
    root = advert_tree([advert_digest(listed[member]) for member in EVERYBODY])[-1][0]
    return replace(request, neighbours=keys, root=root if relist else request.root)


def test_an_honest_advert_put_in_again_changes_nothing() -> None:
    """The request that the tests below change is the coordinator's own."""
    a, request = share_request()
    assert with_advert(a, request, adverts_of(a)[ParticipantId(4)], signed=True) == request
    assert not isinstance(a.ask(ONE, request), Refusal)


@pytest.mark.parametrize("field", ["channel_key", "mask_key", "commitments", "signature"])
@pytest.mark.parametrize("relist", [True, False])
def test_swapped_keys_of_a_peer_are_refused(field: str, relist: bool) -> None:
    a, request = share_request()
    mine = AgreementKey(b"mine" * 8).public
    value = {"channel_key": mine, "mask_key": mine, "commitments": (bytes(32),), "signature": bytes(64)}[field]
    forged = replace(adverts_of(a)[ParticipantId(4)], **{field: value})
    refused(a.ask(ONE, with_advert(a, request, forged, relist)), Reason.BAD_ROSTER)


def test_keys_that_their_device_signed_but_the_root_does_not_hold_are_refused() -> None:
    """A colluder may have signed two adverts: everybody is to see the one that the roster's context binds."""
    a, request = share_request()
    second = replace(adverts_of(a)[ParticipantId(4)], mask_key=AgreementKey(b"mine" * 8).public)
    assert not isinstance(
        Round(fleet=a.fleet, spec=a.spec).ask(ONE, with_advert(a, request, second, relist=True, signed=True)), Refusal
    )
    b, request = share_request()
    refused(b.ask(ONE, with_advert(b, request, second, relist=False, signed=True)), Reason.BAD_ROSTER)


def test_a_root_that_does_not_hold_our_own_advert_is_refused() -> None:
    a, request = share_request()
    mine = replace(adverts_of(a)[ONE], mask_key=AgreementKey(b"mine" * 8).public)
    root = with_advert(a, request, mine, signed=True).root
    refused(a.ask(ONE, replace(request, root=root)), Reason.BAD_ROSTER)


@pytest.mark.parametrize(
    "change",
    [
        "missing-neighbour",
        "one-more",
        "swapped",
        "ourselves-out",
        "nobody",
        "not-owners",
        "padding",
        "strangers",
        "more-members",
        "short-root",
        "few-classes",
        "longer-path",
    ],
)
def test_a_roster_that_leaves_out_or_makes_up_is_refused(change: str) -> None:
    a, request = share_request()
    members, owners = request.members, request.owners[0]
    bad = {
        "missing-neighbour": replace(request, neighbours=request.neighbours[NeighbourKeys.SIZE :]),
        "one-more": replace(request, neighbours=request.neighbours + bytes(NeighbourKeys.SIZE)),
        "swapped": replace(request, neighbours=request.neighbours[160:320] + request.neighbours[:160]),
        "ourselves-out": replace(request, members=b"\x7e", classes=bytes(6), owners=(b"\xfc",)),
        "nobody": replace(request, members=b"\0", classes=b"", owners=(b"",)),
        "not-owners": replace(request, owners=(bytes([owners[0] & 0x7F]),)),
        "padding": replace(request, owners=(bytes([owners[0] | 1]),)),
        "strangers": replace(request, members=bytes([members[0] | 1])),
        "more-members": replace(request, members=members + b"\0"),
        "short-root": replace(request, root=request.root[:-1]),
        "few-classes": replace(request, classes=request.classes[:-1]),
        "longer-path": replace(request, path=bytes(32)),
    }[change]
    refused(a.ask(ONE, bad), Reason.BAD_ROSTER)


def test_a_lie_about_what_a_peer_owns_is_refused() -> None:
    fleet = make_fleet(7)
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=7, max_abs=1.0, exact=True),)) for name in "bc"
    ]
    owns = {member: frozenset({BlockId("b"), BlockId("c")} if member < 5 else {BlockId("b")}) for member in EVERYBODY}
    a = Round(fleet=fleet, spec=make_spec(fleet, blocks), owns=owns)
    request = a.reach("share").requests[ONE]
    inflated = replace(request, owners=(request.owners[0], b"\xfe"))
    refused(a.ask(ONE, inflated), Reason.BAD_ROSTER)


def test_a_roster_of_another_attempt_is_not_taken() -> None:
    a, later = a_round(), a_round(attempt=2)
    a.reach("share")
    refused(a.ask(ONE, later.reach("share").requests[ONE]), Reason.WRONG_ROUND)


def test_devices_that_were_shown_different_rosters_cannot_open_each_others_ciphertexts() -> None:
    """One device is told that device 7 is not there: its keys then fit nobody else's."""
    a = a_round()
    state = a.reach("share")
    request = state.requests[ONE]
    shorter = replace(
        request,
        members=pack_members(EVERYBODY[:6], EVERYBODY),
        root=advert_tree([advert_digest(adverts_of(a)[member]) for member in EVERYBODY[:6]])[-1][0],
        classes=request.classes[:-1],
        owners=(pack_members(EVERYBODY[:6], EVERYBODY[:6]),),
        neighbours=request.neighbours[: -NeighbourKeys.SIZE],
    )
    reply = a.ask(ONE, shorter)
    assert not isinstance(reply, Refusal)
    assert reply.context == roster_context(shorter) != roster_context(request)


# MASK and CONSIST: who is alive


def test_too_few_sharers_are_refused() -> None:
    a = a_round()
    request = a.reach("mask").requests[ONE]
    few = replace(request, sharers=pack_members(EVERYBODY[:5], EVERYBODY), ciphertexts=request.ciphertexts[:4])
    refused(a.ask(ONE, few), Reason.TOO_FEW_DEVICES)


def test_being_left_out_of_the_sharers_is_refused() -> None:
    a = a_round()
    request = a.reach("mask").requests[ONE]
    refused(a.ask(ONE, replace(request, sharers=pack_members(EVERYBODY[1:], EVERYBODY))), Reason.BAD_ROSTER)


def consist(a: Round, survivors: tuple[ParticipantId, ...], context: bytes) -> ConsistRequest:
    return ConsistRequest(context=context, survivors=pack_members(survivors, EVERYBODY))


def test_survivors_below_the_threshold_are_refused() -> None:
    a = a_round()
    request = a.reach("consist").requests[ONE]
    refused(a.ask(ONE, consist(a, EVERYBODY[:5], request.context)), Reason.TOO_FEW_DEVICES)


def test_survivors_who_never_shared_are_refused() -> None:
    fleet = make_fleet(7)
    a = Round(fleet=fleet, spec=make_spec(fleet), ops=[Op(kind="drop", stage="share", member=ParticipantId(7))])
    request = a.reach("consist").requests[ONE]
    refused(a.ask(ONE, consist(a, EVERYBODY, request.context)), Reason.BAD_ROSTER)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_two_survivor_sets_are_never_both_revealed(split: int) -> None:
    """Some devices are shown all seven, the others one less: together they would give up both secrets of device 7."""
    a = a_round()
    state = a.reach("consist")
    context, masked = state.requests[ONE].context, state.progress.masked.signatures
    views = {member: EVERYBODY if member <= 7 - split else EVERYBODY[:6] for member in EVERYBODY[:6]}
    replies = {member: a.ask(member, consist(a, view, context)) for member, view in views.items()}
    revealed: dict[tuple, set[ParticipantId]] = {}
    for member, view in views.items():
        signed = {peer: replies[peer].signature for peer in views if views[peer] == view and agreed(replies[peer])}
        request = RevealRequest(
            context=context,
            survivors=pack_members(view, EVERYBODY),
            signers=pack_members(signed, EVERYBODY),
            signatures=b"".join(signed.values()),
            masked=b"".join(masked[peer] for peer in view if peer not in signed),
        )
        if isinstance(a.ask(member, request), RevealedShares):
            revealed.setdefault(view, set()).add(member)
    assert len(revealed) <= 1


def agreed(reply: object) -> bool:
    return isinstance(reply, Agreement)


# REVEAL


SIGNED = 64


@pytest.mark.parametrize("change", ["none", "few", "forged", "swapped", "strangers", "outsiders", "short", "long"])
def test_reveal_needs_a_quorum_of_signatures(change: str) -> None:
    """7 devices, one of whom may collude: 5 must sign; the receiver's own signature counts without being shown."""
    a = a_round()
    request = a.reach("reveal").requests[ONE]
    signed = request.signatures
    few = pack_members(EVERYBODY[:4], EVERYBODY)
    bad = {
        "none": replace(request, signers=b"\0", signatures=b"", masked=signed[SIGNED:]),
        "few": replace(request, signers=few, signatures=signed[: 4 * SIGNED], masked=signed[4 * SIGNED :]),
        "forged": replace(request, signatures=bytes(len(signed))),
        "swapped": replace(request, signatures=signed[: 5 * SIGNED] + signed[6 * SIGNED :] + signed[5 * SIGNED :][:64]),
        "strangers": replace(request, signers=b"\xff"),
        "outsiders": replace(request, signers=b"\xff\xff"),
        "short": replace(request, signatures=signed[:-1]),
        "long": replace(request, signatures=signed + bytes(SIGNED)),
    }[change]
    reply = a.ask(ONE, bad)
    assert isinstance(reply, Refusal)
    assert reply.reason in (Reason.BAD_AGREEMENT, Reason.BAD_LENGTH)
    assert isinstance(a.ask(ONE, request), Refusal), "and the attempt is over"


def test_a_device_signs_one_survivor_set_a_round() -> None:
    a = a_round()
    request = a.reach("consist").requests[ONE]
    assert agreed(a.ask(ONE, request))
    refused(a.ask(ONE, consist(a, EVERYBODY[:6], request.context)), Reason.EQUIVOCATION)


def test_a_device_reveals_for_no_other_survivor_set_than_it_signed_whoever_signed_that_one() -> None:
    """Six colluders are quorum enough: what they signed is still not what this device did."""
    a = a_round()
    state = a.reach("consist")
    request = state.requests[ONE]
    assert agreed(a.ask(ONE, request))
    survivors = pack_members(EVERYBODY[:6], EVERYBODY)
    context = survivors_context(request.context, survivors)
    signed = [a.fleet.identities[member - 1].sign(agreement_digest(context, member)) for member in EVERYBODY[:6]]
    order = RevealRequest(
        context=request.context, survivors=survivors, signers=survivors, signatures=b"".join(signed), masked=b""
    )
    refused(a.ask(ONE, order), Reason.EQUIVOCATION)


@pytest.mark.parametrize("bitmap", [b"", b"\xfe\x00", b"\xff"])
def test_a_bitmap_of_another_length_or_with_padding_is_refused_in_every_stage(bitmap: bytes) -> None:
    a = a_round()
    refused(a.ask(ONE, replace(a.reach("mask").requests[ONE], sharers=bitmap)), Reason.BAD_LENGTH)
    b = a_round()
    refused(b.ask(ONE, replace(b.reach("consist").requests[ONE], survivors=bitmap)), Reason.BAD_LENGTH)


def test_a_survivor_that_masked_for_another_sharer_set_is_not_unmasked() -> None:
    """Device 7 alone is told that 5 and 6 did not share: it masks without them, and is then called a survivor.

    Its own MASK signature is over other sharers, so nobody who holds its shares gets what it wants to see.
    """
    a = a_round()
    state = a.reach("mask")
    victim, hidden = ParticipantId(7), {ParticipantId(6)}
    true = state.requests[victim]
    ciphertexts = tuple(
        ciphertext for peer, ciphertext in zip(EVERYBODY[:6], true.ciphertexts, strict=True) if peer not in hidden
    )
    sharers = pack_members(set(EVERYBODY) - hidden, EVERYBODY)
    lied_to = a.ask(victim, replace(true, sharers=sharers, ciphertexts=ciphertexts))
    assert isinstance(lied_to, MaskedInput)
    others = {member: a.ask(member, state.requests[member]) for member in EVERYBODY[:6]}
    context = others[ONE].context
    replies = {member: a.ask(member, consist(a, EVERYBODY, context)) for member in EVERYBODY[:6]}
    signed = {member: reply.signature for member, reply in replies.items() if agreed(reply)}
    assert len(signed) == 6, "more than a quorum: only the victim's own signature is missing"
    for forged in (lied_to.signature, bytes(64), signed[ONE], b""):
        request = RevealRequest(
            context=context,
            survivors=pack_members(EVERYBODY, EVERYBODY),
            signers=pack_members(signed, EVERYBODY),
            signatures=b"".join(signed.values()),
            masked=forged,
        )
        for member in EVERYBODY[:6]:
            assert isinstance(a.ask(member, request), Refusal)


def test_a_forged_mask_signature_puts_its_sender_out() -> None:
    """A colluder's bad signature must not end the attempt for the honest."""
    a = a_round()
    state = a.reach("mask")
    now: CoordinatorState = state
    for member, request in state.requests.items():
        reply = a.ask(member, request)
        now = receive(now, member, replace(reply, signature=bytes(64)) if member == ONE else reply)
    now = close_stage(now)
    while isinstance(now, Open):
        now = a.finish_stage(now)
    assert isinstance(now, Summed)
    assert now.rejected[ONE].reason is Reason.BAD_SIGNATURE
    assert ONE not in now.survivors


@pytest.mark.parametrize("mode", list(Mode))
def test_a_device_never_reveals_both_secrets(mode: Mode) -> None:
    """Whatever survivor sets it is asked about, in whatever order, of each peer it gives one kind of share."""
    for first, second in ((EVERYBODY, EVERYBODY[:6]), (EVERYBODY[:6], EVERYBODY), (EVERYBODY, EVERYBODY)):
        a = a_round(mode=mode)
        state = a.reach("consist" if mode is Mode.FULL else "reveal")
        context, answers = state.requests[ONE].context, []
        for view in (first, second):
            if mode is Mode.FULL:
                for member in view:
                    a.ask(member, consist(a, view, context))
            revealed = a.ask(ONE, _reveal(a, view, context))
            if isinstance(revealed, RevealedShares):
                answers.append((view, revealed))
        assert len({view for view, _ in answers}) <= 1
        for view, revealed in answers:
            assert len(revealed.shares) == SHARE_SIZE * 6, view


def _reveal(a: Round, view: tuple[ParticipantId, ...], context: bytes) -> RevealRequest:
    """With whatever signatures can be had."""
    replies = {peer: a.ask(peer, consist(a, view, context)) for peer in view}
    signed = {peer: reply.signature for peer, reply in replies.items() if agreed(reply)}
    fast = a.spec.mode is Mode.FAST
    return RevealRequest(
        context=context,
        survivors=pack_members(view, EVERYBODY),
        signers=b"" if fast else pack_members(signed, EVERYBODY),
        signatures=b"" if fast else b"".join(signed.values()),
        masked=b"",
    )


def test_a_second_attempt_after_agreement_is_refused() -> None:
    a = a_round()
    a.reach("reveal")
    again = Round(fleet=a.fleet, spec=replace(a.spec, attempt=2))
    for member in EVERYBODY:
        refused(again.ask(member, again.open().requests[member]), Reason.REPLAYED)
    following = Round(fleet=a.fleet, spec=replace(a.spec, round_id=2))
    assert isinstance(following.run(), Summed)


def test_a_second_attempt_before_agreement_is_taken_and_the_first_is_dead() -> None:
    a = a_round()
    first = a.reach("consist")
    again = Round(fleet=a.fleet, spec=replace(a.spec, attempt=2))
    assert isinstance(again.run(), Summed)
    refused(a.ask(ONE, first.requests[ONE]), Reason.OUT_OF_ORDER)


# Cohorts


def blocks_and_owners(owners: int) -> tuple[Fleet, list[SummedBlock], dict[ParticipantId, frozenset[BlockId]]]:
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=7, max_abs=1.0, exact=True),))
        for name in ("all", "few")
    ]
    owns = {
        member: frozenset({BlockId("all"), BlockId("few")} if member <= owners else {BlockId("all")})
        for member in EVERYBODY
    }
    return make_fleet(7), blocks, owns


def test_a_block_below_its_cohort_stays_masked() -> None:
    """Even if the coordinator asks: the devices count for themselves and leave the block's shares out."""
    fleet, blocks, owns = blocks_and_owners(owners=2)
    a = Round(fleet=fleet, spec=make_spec(fleet, blocks), owns=owns)
    state = a.reach("reveal")
    for member in EVERYBODY:
        reply = a.ask(member, state.requests[member])
        assert isinstance(reply, RevealedShares)
        assert reply.opened == b"\x80"
        assert len(reply.shares) == SHARE_SIZE * 6
    outcome = a.finish_stage(state)
    assert isinstance(outcome, Summed)
    assert set(outcome.sums) == {"all"}
    assert outcome.skipped[BlockId("few")] == "expected 3 organisations, found 2 (2 of 2 owners survived)"


def test_the_cohort_is_counted_in_organisations_not_devices() -> None:
    """Seven devices of two organisations."""
    fleet = make_fleet(7, organisations=[f"site-{i % 2}" for i in range(7)])
    outcome = run_round(fleet, make_spec(fleet))
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.COHORT_TOO_SMALL


def test_a_block_below_colluders_plus_two_stays_masked() -> None:
    """20 devices, 2 of whom may collude: of 3 owners one could stand alone behind them, of 4 two are honest."""
    fleet = make_fleet(20)
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=20, max_abs=1.0, exact=True),))
        for name in ("all", "four", "three")
    ]
    owners = {"all": 20, "four": 4, "three": 3}
    owns = {
        ParticipantId(i): frozenset(BlockId(name) for name, count in owners.items() if i <= count) for i in range(1, 21)
    }
    outcome = run_round(fleet, make_spec(fleet, blocks), owns=owns)
    assert isinstance(outcome, Summed)
    assert set(outcome.sums) == {"all", "four"}
    assert outcome.skipped[BlockId("three")].startswith("expected 3 owners beside the largest organisation")


def test_a_large_organisation_cannot_stand_in_for_the_others() -> None:
    """2 of 20 may collude. 16 devices of one organisation and one each of two others: the two may be the colluders."""
    for outside, opens in ((2, False), (3, True)):
        organisations = ["large"] * (20 - outside) + [f"small-{i}" for i in range(outside)]
        fleet = make_fleet(20, organisations=organisations)
        outcome = run_round(fleet, make_spec(fleet, min_cohort=3))
        assert isinstance(outcome, Summed) is opens, (outside, outcome)


def test_a_relabelled_organisation_is_refused() -> None:
    """Three devices of one organisation, each said to be of its own: each knows better of itself."""
    fleet = make_fleet(7, organisations=["clinic"] * 5 + ["bank", "lab"])
    spec = make_spec(fleet)
    people = tuple(replace(p, organisation=f"site-{p.participant_id}") for p in spec.participants)
    refused(offered(fleet, replace(spec, participants=people), fleet.policy), Reason.BAD_ROSTER)
    renamed = (replace(spec.participants[0], device="another"), *spec.participants[1:])
    refused(offered(fleet, replace(spec, participants=renamed), fleet.policy), Reason.BAD_ROSTER)


@pytest.mark.parametrize("changed", [{"organisation": "elsewhere"}, {"device": "elsewhere"}, {"weight_class": 64}])
def test_an_advert_that_differs_from_its_row_of_the_roster_is_refused(changed: dict) -> None:
    """A colluder that signs what the coordinator wishes is still held to its row by everybody else."""
    a, request = share_request()
    advert = replace(adverts_of(a)[ParticipantId(2)], **changed)
    refused(a.ask(ONE, with_advert(a, request, advert, signed=True)), Reason.BAD_ROSTER)


@pytest.mark.parametrize("changed", [{"weight_class": 64}, {"blocks": (), "commitments": ()}])
def test_a_member_with_a_class_that_does_not_exist_or_without_a_block_is_refused(changed: dict) -> None:
    """Signed by a colluder and listed by the coordinator: it would count as a member and add nothing to any sum."""
    a, request = share_request()
    request = with_advert(a, request, replace(adverts_of(a)[ParticipantId(4)], **changed), signed=True)
    classes = bytearray(request.classes)
    classes[3] = changed.get("weight_class", classes[3])
    owners = request.owners
    if "blocks" in changed:
        owners = tuple(pack_members(set(EVERYBODY) - {ParticipantId(4)}, EVERYBODY) for _ in owners)
    refused(a.ask(ONE, replace(request, classes=bytes(classes), owners=owners)), Reason.BAD_ROSTER)


def test_the_largest_weight_class_is_one() -> None:
    a, request = share_request()
    advert = replace(adverts_of(a)[ParticipantId(4)], weight_class=MAX_WEIGHT_CLASS)
    request = with_advert(a, request, advert, signed=True)
    classes = bytearray(request.classes)
    classes[3] = MAX_WEIGHT_CLASS
    found = read_roster(a.open().terms.offer, replace(request, classes=bytes(classes)))
    assert not isinstance(found, str), found


def test_a_weight_class_that_its_device_did_not_declare_is_refused() -> None:
    for place in (0, 3):
        a, request = share_request()
        classes = bytearray(request.classes)
        classes[place] = 5
        refused(a.ask(ONE, replace(request, classes=bytes(classes))), Reason.BAD_ROSTER)


def test_a_block_with_too_few_masking_neighbours_stays_masked() -> None:
    """Above 128 owners a device is hidden by its neighbours on the circle: every survivor must have kept enough."""
    members = tuple(ParticipantId(i) for i in range(1, 201))
    spec = make_spec(make_fleet(3), corrupt_fraction=0.1, dropout_fraction=0.1)
    roster = Roster(
        spec=spec,
        offer=bytes(32),
        context=bytes(32),
        members=members,
        root=bytes(32),
        classes=(0,) * 200,
        owners=(members,),
        degree=Degree(36, 21),
    )
    degree = roster.masking_degree(0)
    assert degree is not None
    around = roster.masking_neighbours(ONE, 0)
    spared = degree.neighbours - degree.threshold
    assert roster.enough_survive(0, frozenset(members) - set(around[:spared]))
    assert not roster.enough_survive(0, frozenset(members) - set(around[: spared + 1]))


def test_a_block_that_nobody_can_open_does_not_draw_everybody_into_the_witnesses() -> None:
    """Too few are left around one of its owners: a quorum is shown for the other block, not all signers."""
    members = tuple(ParticipantId(i) for i in range(1, 201))
    fleet = make_fleet(200)
    roster = Roster(
        spec=make_spec(fleet, corrupt_fraction=0.1, dropout_fraction=0.1),
        offer=bytes(32),
        context=bytes(32),
        members=members,
        root=bytes(32),
        classes=(0,) * 200,
        owners=(members[:100], members),
        degree=Degree(36, 21),
    )
    degree = roster.masking_degree(1)
    assert degree is not None
    gone = roster.masking_neighbours(ParticipantId(200), 1)[: degree.neighbours - degree.threshold + 1]
    signers = frozenset(members) - set(gone)
    agreeing = Agreeing(masked=None, survivors=signers, bitmap=b"", signatures=dict.fromkeys(signers, b""))  # type: ignore[arg-type]
    witnesses = _witnesses(roster, agreeing)
    assert cohort_problem(roster, 0, signers, witnesses) is None
    assert cohort_problem(roster, 1, signers, signers) is not None
    assert len(witnesses) == quorum(roster) < len(signers)


def test_no_more_witnesses_are_shown_than_a_quorum_and_the_cohort_of_every_block() -> None:
    """Each signature shown is a signature that every device must check: owners of the small block, then anybody."""
    members = tuple(ParticipantId(i) for i in range(1, 201))
    roster = Roster(
        spec=make_spec(make_fleet(200), corrupt_fraction=0.1, dropout_fraction=0.1),
        offer=bytes(32),
        context=bytes(32),
        members=members,
        root=bytes(32),
        classes=(0,) * 200,
        owners=(members[-30:], members),
        degree=Degree(36, 21),
    )
    agreeing = Agreeing(
        masked=None,  # type: ignore[arg-type]
        survivors=frozenset(members),
        bitmap=b"",
        signatures=dict.fromkeys(members, b""),
    )
    witnesses = _witnesses(roster, agreeing)
    assert len(witnesses) == quorum(roster)
    assert all(cohort_problem(roster, block, members, witnesses) is None for block in (0, 1))
    assert len(witnesses.intersection(members[-30:])) < 30, "as many of the small block's owners as its cohort needs"


@pytest.mark.parametrize("owners", [MOST_NEIGHBOURS, MOST_NEIGHBOURS + 1])
def test_a_block_that_more_devices_mask_with_each_other_than_one_can_is_refused(owners: int) -> None:
    """So many colluders that no circle is safe: all owners mask with all. A device must not work for minutes."""
    rows = [
        Participant(
            participant_id=ParticipantId(i),
            device=f"d{i}",
            organisation=f"o{i}",
            identity=i.to_bytes(2, "big") + bytes(30),
        )
        for i in range(1, MOST_NEIGHBOURS + 2)
    ]
    block = SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=9, max_abs=1.0, exact=True),))
    rest = replace(block, block_id=BlockId("rest"))
    spec = make_spec(
        make_fleet(3), (block, rest), participants=tuple(rows), corrupt_fraction=0.45, dropout_fraction=0.4
    )
    terms, roster = encode_spec(spec)
    offer = RoundOffer(spec=terms, roster=roster, coordinator_channel=bytes(32), signature=b"")
    members = [row.participant_id for row in rows]
    first, last = (pack_members(part, members) for part in (members[:owners], members[-10:]))
    request = ShareRequest(
        context=bytes(32),
        members=pack_members(members, members),
        root=bytes(32),
        classes=bytes(len(members)),
        owners=(first, last),
        neighbours=b"",
        path=b"",
    )
    found = read_roster(offer, request)
    if owners > MOST_NEIGHBOURS:
        assert isinstance(found, str)
        assert f"at most {MOST_NEIGHBOURS} owners" in found
        assert f"found {owners} of b;" in found
    else:
        assert isinstance(found, Roster), found
        assert found.masking_degree(0) is None
