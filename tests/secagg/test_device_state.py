"""How far a device has gone: its mark goes forward only, whatever state it is in."""

import pytest

from fedpeft.ids import ParticipantId
from fedpeft.secagg import HighWaterMark, Reason
from fedpeft.secagg.device_state import DeviceState, Failed, mark_of
from fedpeft.testing.secagg import STAGES, Round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec


def state_after(stage: str, **changes: object) -> DeviceState:
    """A device's state when the coordinator has come to this stage."""
    fleet = make_fleet(4)
    a = Round(fleet=fleet, spec=make_spec(fleet, round_id=5, attempt=3, **changes))
    a.reach(stage)
    state = fleet.ledgers[ParticipantId(1)].load("run")
    assert state is not None
    return state


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_mark_names_the_round_and_whether_a_survivor_set_was_signed(stage: str) -> None:
    here = mark_of(state_after(stage), None)
    assert here is not None
    assert (here.round_id, here.attempt, here.agreed) == (5, 3, stage == "reveal")
    assert bool(here.signed) == here.agreed


def test_a_failure_before_any_terms_leaves_the_mark_as_it_is() -> None:
    before = HighWaterMark(round_id=5, attempt=3, agreed=True, signed=b"set")
    assert mark_of(Failed(participation=None, reason=Reason.MALFORMED, detail="no offer"), before) == before


@pytest.mark.parametrize(("round_id", "attempt"), [(5, 2), (4, 9)])
def test_a_later_round_or_attempt_replaces_an_earlier_mark(round_id: int, attempt: int) -> None:
    earlier = HighWaterMark(round_id=round_id, attempt=attempt, agreed=True, signed=b"earlier")
    here = mark_of(state_after("mask"), earlier)
    assert here is not None
    assert (here.round_id, here.attempt, here.agreed, here.signed) == (5, 3, False, b"")


def test_what_was_signed_in_an_attempt_stays_signed_when_it_is_begun_again() -> None:
    signed = mark_of(state_after("reveal"), None)
    assert signed is not None
    assert mark_of(state_after("share"), signed) == signed


@pytest.mark.parametrize(("round_id", "attempt"), [(5, 4), (6, 1)])
def test_a_state_of_an_earlier_round_or_attempt_leaves_the_mark_as_it_is(round_id: int, attempt: int) -> None:
    """A state that is put back from a backup would have a later round signed twice."""
    later = HighWaterMark(round_id=round_id, attempt=attempt, agreed=True, signed=b"later", history=b"past")
    for stage in STAGES[1:]:
        assert mark_of(state_after(stage), later) == later
