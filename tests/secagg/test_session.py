"""The session: saves before it replies, and lets nothing that is not meant for it change what it holds."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg import (
    Aborted,
    Advertise,
    DeviceSession,
    MemoryLedger,
    Open,
    Reason,
    Refusal,
    Reply,
    RoundOffer,
    RoundSpec,
    Summed,
    close_stage,
    receive,
)
from fedpeft.secagg.coordinator_state import Sharing
from fedpeft.secagg.device_state import Failed
from fedpeft.secagg.graph import sharing_degree
from fedpeft.secagg.messages import EncryptedShares, RevealRequest, ShareRequest
from fedpeft.secagg.spec import Mode
from fedpeft.secagg.transcript import NeighbourKeys
from fedpeft.testing.secagg import Op, Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec
from fedpeft.wire import encode

ONE = ParticipantId(1)
OWNS = frozenset({BlockId("b")})


def test_an_offer_that_is_refused_leaves_the_open_round_as_it_was() -> None:
    fleet = make_fleet(5)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    a.reach("mask")
    before = fleet.ledgers[ONE].dumped["run"]
    stranger = make_fleet(5, seed=8)
    forged = Round(fleet=stranger, spec=make_spec(fleet, attempt=2)).open().requests[ONE]
    refusal = fleet.sessions[ONE].begin(forged, owns=OWNS, entropy=os_entropy)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_SIGNATURE
    assert fleet.ledgers[ONE].dumped["run"] == before


def test_an_offer_that_is_no_offer_is_malformed() -> None:
    fleet = make_fleet(5)
    reply = fleet.sessions[ONE].begin(
        RoundOffer(spec=b"nonsense", roster=b"", coordinator_channel=bytes(32), signature=bytes(64)),
        owns=OWNS,
        entropy=os_entropy,
    )
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.MALFORMED


def test_the_same_offer_gets_the_same_advert_whatever_the_entropy() -> None:
    fleet = make_fleet(5)
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    session = fleet.sessions[ONE]
    assert session.begin(offer, owns=OWNS, entropy=os_entropy) == session.begin(offer, owns=OWNS, entropy=os_entropy)


def test_a_request_of_a_run_that_is_not_open_is_refused() -> None:
    fleet = make_fleet(5)
    request = Round(fleet=fleet, spec=make_spec(fleet)).reach("share").requests[ONE]
    reply = make_fleet(5).sessions[ONE].answer("run", request)
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.OUT_OF_ORDER


def test_the_roster_is_in_ascending_order_whatever_the_order_of_the_adverts() -> None:
    fleet = make_fleet(5)
    state = Round(fleet=fleet, spec=make_spec(fleet)).open()
    for member, offer in sorted(state.requests.items(), reverse=True):
        assert isinstance(offer, RoundOffer)
        state = receive(state, member, fleet.sessions[member].begin(offer, owns=OWNS, entropy=os_entropy))
        assert isinstance(state, Open)
    state = close_stage(state)
    assert isinstance(state, Open)
    for member, request in state.requests.items():
        assert isinstance(request, ShareRequest)
        assert request.members == b"\xf8"
        answer = fleet.sessions[member].answer("run", request)
        assert isinstance(answer, EncryptedShares), answer


def test_a_round_that_nobody_joins_is_aborted_and_may_be_tried_again() -> None:
    fleet = make_fleet(5)
    end = close_stage(Round(fleet=fleet, spec=make_spec(fleet)).open())
    assert isinstance(end, Aborted)
    assert (end.reason, end.restartable) == (Reason.TOO_FEW_DEVICES, True)


def test_fewer_than_the_stated_fractions_need_abort_the_round_and_it_may_be_tried_again() -> None:
    fleet = make_fleet(5)
    absent = [Op(kind="drop", stage="fit", member=ParticipantId(i), request=True) for i in (2, 3, 4, 5)]
    end = Round(fleet=fleet, spec=make_spec(fleet), ops=absent).run()
    assert isinstance(end, Aborted)
    assert (end.reason, end.restartable) == (Reason.TOO_FEW_DEVICES, True)


def test_a_share_request_lists_the_keys_of_a_devices_neighbours_in_ascending_order() -> None:
    fleet, members = make_fleet(40), [1, 8, 16, 33, 40]  # as a set they come out in another order
    absent = [
        Op(kind="drop", stage="fit", member=ParticipantId(i), request=True) for i in range(1, 41) if i not in members
    ]
    state = Round(fleet=fleet, spec=make_spec(fleet), ops=absent).reach("share")
    assert list(state.requests) == members
    assert isinstance(state.progress, Sharing)
    keys = {member: NeighbourKeys.of(advert).pack() for member, advert in state.progress.members.adverts.items()}
    for member, request in state.requests.items():
        assert isinstance(request, ShareRequest)
        others = [ParticipantId(i) for i in members if i != member]
        assert request.neighbours == b"".join(keys[i] for i in others)


@pytest.mark.parametrize(("stage", "mode"), [("share", Mode.FULL), ("share", Mode.FAST), ("mask", Mode.FAST)])
def test_a_secret_needs_more_devices_than_its_threshold_in_every_stage(stage: str, mode: Mode) -> None:
    """With as many as the threshold, nobody but the owner's peers would be left to rebuild its secret."""
    degree = sharing_degree(9, 0.1, 0.4)
    assert degree is not None
    threshold = degree.threshold
    for found in (threshold, threshold + 1):
        silent = [Op(kind="drop", stage=stage, member=ParticipantId(i), request=True) for i in range(found + 1, 10)]
        fleet = make_fleet(9)
        spec = make_spec(fleet, mode=mode, corrupt_fraction=0.1, dropout_fraction=0.4)
        a = Round(fleet=fleet, spec=spec, ops=silent)
        state = a.finish_stage(a.reach(stage))
        if found > threshold:
            assert isinstance(state, Open), state
        else:
            assert isinstance(state, Aborted)
            assert (state.reason, state.restartable) == (Reason.TOO_FEW_DEVICES, True)


def test_without_the_consistency_round_nobody_has_signed_anything_to_show() -> None:
    fleet = make_fleet(5)
    state = Round(fleet=fleet, spec=make_spec(fleet, mode=Mode.FAST)).reach("reveal")
    for request in state.requests.values():
        assert isinstance(request, RevealRequest)
        assert (request.signers, request.signatures, request.masked) == (b"", b"", b"")


def test_inputs_are_asked_for_once_and_only_when_they_are_needed() -> None:
    fleet, calls = make_fleet(5), []

    def inputs() -> dict[BlockId, np.ndarray]:
        calls.append(1)
        return {BlockId("b"): np.zeros(5, np.float32)}

    a = Round(fleet=fleet, spec=make_spec(fleet))
    state = a.open()
    while not isinstance(state, Summed):
        request = state.requests[ONE]
        if not isinstance(request, RoundOffer):
            for _ in range(2):
                fleet.sessions[ONE].answer("run", request, inputs=inputs, rounding=os_entropy)
        state = a.finish_stage(state)
    assert calls == [1]


def test_two_runs_do_not_disturb_each_other() -> None:
    fleet = make_fleet(5)
    one, other = (Round(fleet=fleet, spec=make_spec(fleet, run_id=name)) for name in ("one", "other"))
    first = one.reach("mask")
    assert isinstance(other.run(), Summed)
    state = first
    while not isinstance(state, Summed):
        state = one.finish_stage(state)
    assert np.array_equal(state.sums[BlockId("b")].values, np.ones(5))


def test_a_session_needs_nothing_but_ledger_identity_and_policy() -> None:
    fleet = make_fleet(5)
    session = DeviceSession(
        ledger=MemoryLedger(),
        identity=fleet.identities[0],
        enrolled=fleet.enrolled(ParticipantId(1)),
        policy=replace(fleet.policy),
    )
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    assert not isinstance(session.begin(offer, owns=OWNS, entropy=os_entropy), Refusal)


def test_a_roster_that_the_device_holds_need_not_come_again() -> None:
    """From the run's last round, however that ended here; in another run, or after another roster, it must."""
    fleet = make_fleet(5)
    session = fleet.sessions[ONE]

    def answered(whole: bool = False, **changes: object) -> Reply:
        offer = Round(fleet=fleet, spec=make_spec(fleet, **changes)).open().requests[ONE]
        assert isinstance(offer, RoundOffer)
        offer = offer if whole else replace(offer, roster=b"")
        examined = session.examine(offer)
        reply = session.begin(offer, owns=OWNS, entropy=os_entropy)
        assert isinstance(examined, Refusal) == isinstance(reply, Refusal)
        return reply

    def is_missing(reply: Reply) -> bool:
        return isinstance(reply, Refusal) and reply.reason is Reason.MISSING_ROSTER

    assert is_missing(answered())
    assert isinstance(answered(whole=True), Advertise)
    assert isinstance(answered(round_id=2), Advertise)
    fleet.restart(ONE)
    session = fleet.sessions[ONE]
    assert isinstance(answered(round_id=3), Advertise), "a restarted device has it in its ledger"
    assert is_missing(answered(run_id="another"))
    fewer = make_spec(fleet).participants[:4]
    assert is_missing(answered(round_id=4, participants=fewer))
    assert isinstance(answered(round_id=4, participants=fewer, whole=True), Advertise)
    assert is_missing(answered(round_id=5))


def test_a_round_that_failed_before_its_terms_were_known_leaves_a_device_ready_for_the_next() -> None:
    """Nothing is held of it: neither a roster nor terms to answer again."""
    fleet = make_fleet(5)
    fleet.ledgers[ONE].save("run", Failed(participation=None, reason=Reason.POLICY, detail="not today"))
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    assert isinstance(offer, RoundOffer)
    assert isinstance(fleet.sessions[ONE].examine(offer), RoundSpec)
    bare = fleet.sessions[ONE].begin(replace(offer, roster=b""), owns=OWNS, entropy=os_entropy)
    assert isinstance(bare, Refusal)
    assert bare.reason is Reason.MISSING_ROSTER
    assert isinstance(fleet.sessions[ONE].begin(offer, owns=OWNS, entropy=os_entropy), Advertise)


def test_a_repeated_offer_is_the_same_with_its_roster_and_without() -> None:
    fleet = make_fleet(5)
    offer = Round(fleet=fleet, spec=make_spec(fleet)).open().requests[ONE]
    assert isinstance(offer, RoundOffer)
    first = fleet.sessions[ONE].begin(offer, owns=OWNS, entropy=os_entropy)
    assert fleet.sessions[ONE].begin(replace(offer, roster=b""), owns=OWNS, entropy=os_entropy) == first


def test_what_a_device_is_sent_does_not_hold_every_member() -> None:
    """FIT and SHARE of 200 devices, of whom 78 are neighbours: 160 bytes each, a path, and a few bytes a member."""
    fleet = make_fleet(200)
    state = Round(fleet=fleet, spec=make_spec(fleet)).open()
    offer = state.requests[ONE]
    assert isinstance(offer, RoundOffer)
    for member in state.requests:
        state = receive(state, member, fleet.sessions[member].begin(offer, owns=OWNS, entropy=os_entropy))
    state = close_stage(state)
    assert isinstance(state, Open)
    share = state.requests[ONE]
    assert isinstance(share, ShareRequest)
    around = state.progress.members.roster.neighbours_of(ONE)  # type: ignore[union-attr]
    assert len(share.neighbours) == 160 * len(around) < 160 * 100
    assert len(share.path) < 32 * 100
    assert len(encode(share)) - len(share.neighbours) - len(share.path) < 2 * 200
    assert len(offer.roster) < 60 * 200
    assert len(encode(replace(offer, roster=b""))) < 600
    assert isinstance(fleet.sessions[ONE].answer("run", share), EncryptedShares)


def test_a_quorum_that_is_smaller_than_a_secret_needs_ends_a_round_that_may_not_be_tried_again() -> None:
    """Of twenty, twelve are a quorum and thirteen hold a secret; the twelve have signed these survivors."""
    fleet = make_fleet(20)
    silent = [Op(kind="drop", stage="consist", member=ParticipantId(i), request=True) for i in range(13, 21)]
    end = Round(fleet=fleet, spec=make_spec(fleet), ops=silent).run()
    assert isinstance(end, Aborted)
    assert (end.reason, end.restartable) == (Reason.TOO_FEW_DEVICES, False)
