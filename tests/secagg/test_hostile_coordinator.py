"""A coordinator that cheats: every way known to us, and what the device answers.

The coordinator here signs whatever it likes with its real key, sees every message and may collude with devices; a
device must refuse before it reveals anything that lets one honest input be told from the sum.
"""

from dataclasses import replace

import pytest

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    Aborted,
    Advertise,
    ConsistRequest,
    ConsistTags,
    DevicePolicy,
    IdentityKey,
    Mode,
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
    open_round,
)
from fedpeft.secagg.graph import Degree
from fedpeft.secagg.primitives import TAG_SIZE, AgreementKey
from fedpeft.secagg.roster import Roster, pack_members
from fedpeft.secagg.shamir import SHARE_SIZE
from fedpeft.secagg.transcript import advert_digest, offer_context, roster_context
from fedpeft.testing.secagg import Fleet, Op, Round, make_fleet, make_spec, run_round
from fedpeft.wire import encode

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
        offer, owns=frozenset({BlockId("b")}), identity=fleet.identities[0], policy=policy, entropy=os_entropy
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
    for changed in (replace(offer, spec=encode(weaker)), replace(offer, coordinator_channel=bytes(32))):
        refused(a.ask(ONE, changed), Reason.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ({"allow_fast": False}, {"mode": Mode.FAST}),
        ({"min_corrupt_fraction": 0.1}, {"corrupt_fraction": 0.0}),
        (
            {"min_levels": 100},
            {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1.0),), bits=8),)},
        ),
        (
            {"min_max_abs": 1e-3},
            {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1e-6),)),)},
        ),
        ({"known_devices": {}}, {}),
    ],
    ids=["no-consistency", "nobody-colludes", "small-ring", "tiny-range", "strangers"],
)
def test_terms_weaker_than_the_site_allows_are_refused(policy: dict, changes: dict) -> None:
    fleet = make_fleet(5)
    refused(offered(fleet, make_spec(fleet, **changes), replace(fleet.policy, **policy)), Reason.POLICY)


def test_a_directory_of_the_site_catches_swapped_identities() -> None:
    fleet, impostor = make_fleet(5), make_fleet(1, seed=3)
    spec = make_spec(fleet)
    directory = {p.device: (p.organisation, p.identity) for p in spec.participants}
    policy = replace(fleet.policy, known_devices=directory)
    assert isinstance(offered(fleet, spec, policy), Advertise)
    swapped = replace(spec.participants[4], identity=impostor.identities[0].public)
    refused(offered(fleet, replace(spec, participants=(*spec.participants[:4], swapped)), policy), Reason.POLICY)


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
        {"blocks": ()},
        {"blocks": (SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1.0),), bits=2),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_terms_that_contradict_themselves_are_refused_even_if_signed(change: dict) -> None:
    fleet = make_fleet(5)
    offer = _sign_anything(fleet, make_spec(fleet, **change))
    step = begin(
        offer, owns=frozenset({BlockId("b")}), identity=fleet.identities[0], policy=fleet.policy, entropy=os_entropy
    )
    refused(step.reply, Reason.BAD_TERMS)


@pytest.mark.parametrize("roster", ["two", "gap", "device-twice", "key-twice", "short-key"])
def test_a_roster_that_contradicts_itself_is_refused(roster: str) -> None:
    fleet = make_fleet(5)
    people = list(make_spec(fleet).participants)
    match roster:
        case "two":
            people = people[:2]
        case "gap":
            people[4] = replace(people[4], participant_id=ParticipantId(9))
        case "device-twice":
            people[4] = replace(people[4], device=people[3].device)
        case "key-twice":
            people[4] = replace(people[4], identity=people[3].identity)
        case "short-key":
            people[4] = replace(people[4], identity=b"short")
    offer = _sign_anything(fleet, make_spec(fleet, participants=tuple(people)))
    step = begin(
        offer, owns=frozenset({BlockId("b")}), identity=fleet.identities[0], policy=fleet.policy, entropy=os_entropy
    )
    refused(step.reply, Reason.BAD_TERMS)


def _sign_anything(fleet: Fleet, spec: RoundSpec):
    unsigned = RoundOffer(spec=encode(spec), coordinator_channel=AgreementKey(b"c" * 32).public, signature=b"")
    return replace(unsigned, signature=fleet.coordinator.sign(offer_context(unsigned)))


# SHARE: the roster


def share_request() -> tuple[Round, ShareRequest]:
    a = a_round()
    return a, a.reach("share").requests[ONE]


def with_advert(request: ShareRequest, index: int, advert: Advertise, relist: bool = True) -> ShareRequest:
    """The request with one advert replaced, and its digest on the roster too."""
    digests = bytearray(request.digests)
    if relist:
        at = 32 * (advert.participant_id - 1)
        digests[at : at + 32] = advert_digest(advert)
    adverts = (*request.adverts[:index], advert, *request.adverts[index + 1 :])
    return replace(request, digests=bytes(digests), adverts=adverts)


@pytest.mark.parametrize("field", ["channel_key", "mask_key", "commitments", "blocks", "context"])
@pytest.mark.parametrize("relist", [True, False])
def test_swapped_keys_of_a_peer_are_refused(field: str, relist: bool) -> None:
    a, request = share_request()
    mine = AgreementKey(b"mine" * 8).public
    value = {
        "channel_key": mine,
        "mask_key": mine,
        "commitments": (bytes(32),),
        "blocks": (BlockId("x"),),
        "context": bytes(32),
    }[field]
    forged = replace(request.adverts[2], **{field: value})
    refused(a.ask(ONE, with_advert(request, 2, forged, relist)), Reason.BAD_ROSTER)


@pytest.mark.parametrize(
    "change", ["missing-neighbour", "twice", "ourselves-out", "not-owners", "padding", "order", "short"]
)
def test_a_roster_that_leaves_out_or_makes_up_is_refused(change: str) -> None:
    a, request = share_request()
    members, owners = request.members, request.owners[0]
    bad = {
        "missing-neighbour": replace(request, adverts=request.adverts[1:]),
        "twice": replace(request, adverts=(request.adverts[0], *request.adverts)),
        "ourselves-out": replace(request, members=members[4:], digests=request.digests[32:], owners=(b"\xfc",)),
        "not-owners": replace(request, owners=(bytes([owners[0] & 0x7F]),)),
        "padding": replace(request, owners=(bytes([owners[0] | 1]),)),
        "order": replace(request, members=members[4:8] + members[:4] + members[8:]),
        "short": replace(request, digests=request.digests[:-1]),
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


def test_devices_that_were_shown_different_rosters_cannot_open_each_others_boxes() -> None:
    """One device is told that device 7 is not there: its keys then fit nobody else's."""
    a = a_round()
    state = a.reach("share")
    request = state.requests[ONE]
    shorter = replace(
        request,
        members=request.members[:-4],
        digests=request.digests[:-32],
        owners=(pack_members(EVERYBODY[:6], EVERYBODY[:6]),),
        adverts=request.adverts[:-1],
    )
    reply = a.ask(ONE, shorter)
    assert not isinstance(reply, Refusal)
    assert reply.context == roster_context(shorter) != roster_context(request)


# MASK and CONSIST: who is alive


def test_too_few_sharers_are_refused() -> None:
    a = a_round()
    request = a.reach("mask").requests[ONE]
    few = replace(request, sharers=pack_members(EVERYBODY[:5], EVERYBODY), boxes=request.boxes[:4])
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
    context = a.reach("consist").requests[ONE].context
    views = {member: EVERYBODY if member <= 7 - split else EVERYBODY[:6] for member in EVERYBODY[:6]}
    replies = {member: a.ask(member, consist(a, view, context)) for member, view in views.items()}
    revealed: dict[tuple, set[ParticipantId]] = {}
    for member, view in views.items():
        vouchers = [
            peer for peer in views if peer != member and views[peer] == view and isinstance(replies[peer], ConsistTags)
        ]
        tags = b"".join(_tag_for(replies[peer], view, peer, member) for peer in vouchers)
        request = RevealRequest(
            context=context, survivors=pack_members(view, EVERYBODY), vouchers=tuple(vouchers), tags=tags
        )
        if isinstance(a.ask(member, request), RevealedShares):
            revealed.setdefault(view, set()).add(member)
    assert len(revealed) <= 1


def _tag_for(reply: ConsistTags, view: tuple[ParticipantId, ...], sender: ParticipantId, receiver: ParticipantId):
    place = [peer for peer in view if peer != sender].index(receiver)
    return reply.tags[TAG_SIZE * place : TAG_SIZE * (place + 1)]


# REVEAL


@pytest.mark.parametrize("change", ["none", "few", "forged", "twice", "strangers", "short"])
def test_survivors_that_too_few_vouch_for_are_refused(change: str) -> None:
    a = a_round()
    request = a.reach("reveal").requests[ONE]
    count, tags = len(request.vouchers), request.tags
    bad = {
        "none": replace(request, vouchers=(), tags=b""),
        "few": replace(request, vouchers=request.vouchers[:4], tags=tags[: 4 * TAG_SIZE]),
        "forged": replace(request, tags=bytes(len(tags))),
        "twice": replace(request, vouchers=request.vouchers[:1] * count, tags=tags[:TAG_SIZE] * count),
        "strangers": replace(request, vouchers=tuple(ParticipantId(90 + i) for i in range(count))),
        "short": replace(request, tags=tags[:-1]),
    }[change]
    reply = a.ask(ONE, bad)
    assert isinstance(reply, Refusal)
    assert reply.reason in (Reason.BAD_AGREEMENT, Reason.BAD_LENGTH)
    assert isinstance(a.ask(ONE, request), Refusal), "and the attempt is over"


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
    """With whatever vouchers can be had."""
    vouched = []
    for peer in view:
        reply = a.ask(peer, consist(a, view, context)) if peer != ONE else None
        if isinstance(reply, ConsistTags):
            vouched.append((peer, _tag_for(reply, view, peer, ONE)))
    fast = a.spec.mode is Mode.FAST
    return RevealRequest(
        context=context,
        survivors=pack_members(view, EVERYBODY),
        vouchers=() if fast else tuple(peer for peer, _ in vouched),
        tags=b"" if fast else b"".join(tag for _, tag in vouched),
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
    """A Sybil roster: seven devices of two organisations."""
    fleet = make_fleet(7)
    spec = make_spec(fleet)
    people = tuple(replace(p, organisation=f"site-{p.participant_id % 2}") for p in spec.participants)
    outcome = run_round(fleet, replace(spec, participants=people))
    assert isinstance(outcome, Aborted)
    assert outcome.reason is Reason.COHORT_TOO_SMALL


def test_a_site_may_demand_a_larger_cohort_than_the_terms() -> None:
    fleet, blocks, owns = blocks_and_owners(owners=4)
    strict = make_fleet(7, min_cohort=5)
    assert set(run_round(fleet, make_spec(fleet, blocks), owns=owns).sums) == {"all", "few"}
    outcome = run_round(strict, make_spec(strict, blocks), owns=owns)
    assert isinstance(outcome, Summed)
    assert set(outcome.sums) == {"all"}
    assert "too few good shares" in outcome.skipped[BlockId("few")]


def test_low_dropout_terms_close_a_large_block_that_lost_too_many() -> None:
    """Above 128 owners the masking graph is only as connected as the terms assumed."""
    members = tuple(ParticipantId(i) for i in range(1, 201))
    spec = RoundSpec(
        run_id="r",
        round_id=1,
        attempt=1,
        mode=Mode.FAST,
        participants=(),
        blocks=(),
        min_cohort=3,
        corrupt_fraction=0.1,
        dropout_fraction=0.1,
        stage_deadline_s=1.0,
    )
    roster = Roster(spec=spec, context=bytes(32), members=members, digests=(), owners=(members,), degree=Degree(32, 18))
    assert roster.enough_survive(0, members[:180])
    assert not roster.enough_survive(0, members[:179])
