"""The device's state machine: what it answers, once, and what ends an attempt."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.entropy import os_entropy
from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import (
    Advertise,
    ConsistRequest,
    HighWaterMark,
    MaskRequest,
    Mode,
    Reason,
    Refusal,
    Request,
    RevealRequest,
    ShareRequest,
    Summed,
    SummedBlock,
    answer,
    begin,
)
from fedpeft.secagg.device_state import Advertised, Closed, Failed
from fedpeft.testing.secagg import STAGES, Round, run_round
from fedpeft.testing.secagg_fleet import Fleet, make_fleet, make_spec

ONE = ParticipantId(1)


def a_round(devices: int = 5, **changes: object) -> Round:
    fleet = make_fleet(devices)
    return Round(fleet=fleet, spec=make_spec(fleet, **changes))


def state_of(fleet: Fleet, member: ParticipantId):
    return fleet.ledgers[member].load("run")


@pytest.mark.parametrize("stage", STAGES)
def test_a_repeated_request_gets_the_same_reply(stage: str) -> None:
    a = a_round()
    request = a.reach(stage).requests[ONE]
    first = a.ask(ONE, request)
    a.fleet.restart(ONE)
    assert a.ask(ONE, request) == first
    assert not isinstance(first, Refusal)


def altered(request: Request) -> Request:
    match request:
        case ShareRequest():
            return replace(request, owners=(bytes([request.owners[0][0] ^ 8]),))
        case MaskRequest():
            return replace(request, ciphertexts=request.ciphertexts[::-1])
        case ConsistRequest() | RevealRequest():
            return replace(request, survivors=bytes([request.survivors[0] ^ 8]))
        case _:
            raise AssertionError(request)


@pytest.mark.parametrize("stage", ["share", "mask", "consist"])
def test_a_second_different_request_ends_the_attempt(stage: str) -> None:
    a = a_round()
    request = a.reach(stage).requests[ONE]
    a.ask(ONE, request)
    refusal = a.ask(ONE, altered(request))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.EQUIVOCATION
    assert isinstance(state_of(a.fleet, ONE), Failed)
    assert isinstance(a.ask(ONE, request), Refusal)


def test_a_reveal_for_other_survivors_than_agreed_ends_the_attempt() -> None:
    a = a_round()
    request = a.reach("reveal").requests[ONE]
    refusal = a.ask(ONE, altered(request))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.EQUIVOCATION
    assert isinstance(a.ask(ONE, request), Refusal)


def test_a_closed_device_keeps_no_secret_and_no_held_share() -> None:
    a = a_round()
    assert isinstance(a.run(), Summed)
    state = state_of(a.fleet, ONE)
    assert isinstance(state, Closed)
    assert set(Closed.__dataclass_fields__) == {"participation", "asked", "reply"}


@pytest.mark.parametrize("stage", ["mask", "consist", "reveal"])
def test_a_request_before_its_stage_is_refused_and_changes_nothing(stage: str) -> None:
    a = a_round()
    ahead = a.reach(stage).requests[ONE]
    fresh = a_round()
    fresh.reach("share")
    before = fresh.fleet.ledgers[ONE].dumped["run"]
    refusal = fresh.ask(ONE, ahead)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OUT_OF_ORDER
    assert fresh.fleet.ledgers[ONE].dumped["run"] == before


def test_a_stray_request_of_another_round_is_refused_and_changes_nothing() -> None:
    a, other = a_round(), a_round(round_id=2)
    a.reach("mask")
    before = a.fleet.ledgers[ONE].dumped["run"]
    refusal = a.ask(ONE, other.reach("mask").requests[ONE])
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.WRONG_ROUND
    assert a.fleet.ledgers[ONE].dumped["run"] == before


def test_fast_mode_has_no_consist_stage_and_reveals_from_masked() -> None:
    a = a_round(mode=Mode.FAST)
    state = a.reach("reveal")
    assert isinstance(state.requests[ONE], RevealRequest)
    assert isinstance(a.finish_stage(state), Summed)


@pytest.mark.parametrize(
    ("mark", "accepted"),
    [
        (None, True),
        (HighWaterMark(round_id=1, attempt=1, agreed=False), True),
        (HighWaterMark(round_id=2, attempt=1, agreed=False), True),
        (HighWaterMark(round_id=2, attempt=1, agreed=True), False),
        (HighWaterMark(round_id=2, attempt=2, agreed=False), False),
        (HighWaterMark(round_id=2, attempt=3, agreed=False), False),
        (HighWaterMark(round_id=3, attempt=1, agreed=False), False),
    ],
)
def test_a_device_never_goes_back_nor_opens_two_attempts_of_a_round(mark: HighWaterMark | None, accepted: bool) -> None:
    a = a_round(round_id=2, attempt=2)
    offer = a.open().requests[ONE]
    step = begin(
        offer,
        owns=frozenset({BlockId("b")}),
        identity=a.fleet.identities[0],
        enrolled=a.fleet.enrolled(ONE),
        policy=a.fleet.policy,
        entropy=os_entropy,
        mark=mark,
    )
    if accepted:
        assert isinstance(step.state, Advertised)
    else:
        assert isinstance(step.reply, Refusal)
        assert step.reply.reason is Reason.REPLAYED


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (np.zeros(4, np.float32), "5 coordinates"),
        (np.zeros(5, np.int32), "float32 or float64"),
        (np.full(5, np.nan, np.float32), "finite"),
        (np.array([np.inf, 0, 0, 0, 0], np.float32), "finite"),
        (np.full(5, 1.5, np.float32), "whole numbers"),
        (np.full(5, 2.0, np.float32), "whole numbers"),
    ],
)
def test_a_bad_input_is_refused_by_its_own_device_and_the_round_goes_on(vector: np.ndarray, words: str) -> None:
    fleet = make_fleet(6)
    spec = make_spec(fleet, [SummedBlock(block_id=BlockId("b"), ranges=(SumRange(length=5, max_abs=1.0, exact=True),))])
    good = {ParticipantId(i): {BlockId("b"): np.ones(5, np.float32)} for i in range(2, 7)}
    outcome = run_round(fleet, spec, inputs={**good, ONE: {BlockId("b"): vector}})
    assert isinstance(outcome, Summed)
    assert np.array_equal(outcome.sums[BlockId("b")].values, np.full(5, 5.0))
    assert outcome.rejected[ONE].reason is Reason.BAD_INPUT
    assert words in outcome.rejected[ONE].detail


def test_vectors_for_other_blocks_than_declared_are_refused() -> None:
    a = a_round()
    state = a.reach("mask")
    shared = state_of(a.fleet, ONE)
    for inputs in ({}, {BlockId("x"): np.zeros(5, np.float32)}, None):
        step = answer(shared, state.requests[ONE], identity=a.fleet.identities[0], inputs=inputs, rounding=os_entropy)
        assert isinstance(step.reply, Refusal)
        assert step.reply.reason is Reason.BAD_INPUT


@pytest.mark.parametrize("owns", [frozenset(), frozenset({"other"}), frozenset({"b", "other"})])
def test_owning_nothing_or_an_undeclared_block_is_refused(owns: frozenset) -> None:
    a = a_round()
    reply = a.fleet.sessions[ONE].begin(a.open().requests[ONE], owns=owns, entropy=os_entropy)
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.BLOCK_NOT_DECLARED


def test_a_stranger_is_not_on_the_roster() -> None:
    a, strangers = a_round(), make_fleet(5, seed=9)
    step = begin(
        a.open().requests[ONE],
        owns=frozenset({BlockId("b")}),
        identity=strangers.identities[0],
        enrolled=a.fleet.enrolled(ONE),
        policy=a.fleet.policy,
        entropy=os_entropy,
    )
    assert isinstance(step.reply, Refusal)
    assert step.reply.reason is Reason.NOT_ON_ROSTER


def test_two_attempts_use_different_keys() -> None:
    a = a_round()
    offers = [replace(a, spec=replace(a.spec, attempt=n)).open().requests[ONE] for n in (1, 2)]
    adverts = [
        begin(
            offer,
            owns=frozenset({BlockId("b")}),
            identity=a.fleet.identities[0],
            enrolled=a.fleet.enrolled(ONE),
            policy=a.fleet.policy,
            entropy=lambda size: b"r" * size,  # even from the same root
        ).reply
        for offer in offers
    ]
    assert all(isinstance(advert, Advertise) for advert in adverts)
    assert adverts[0].mask_key != adverts[1].mask_key
    assert adverts[0].commitments != adverts[1].commitments
