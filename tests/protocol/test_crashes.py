"""A device may be killed between any two messages, and lose nothing; a whole fleet may, at every stage."""

from pathlib import Path

import numpy as np
import pytest

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.secagg import DeviceSession, FileLedger, Mode, Refusal, Summed
from fedpeft.testing.secagg import STAGES, Op, Round, run_round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

B = BlockId("b")


@pytest.mark.parametrize("mode", list(Mode))
def test_every_device_restarts_after_every_message_and_the_sum_is_exact(mode: Mode) -> None:
    fleet = make_fleet(5)
    ops = [Op(kind="restart", stage=stage, member=ParticipantId(i)) for stage in STAGES for i in range(1, 6)]
    outcome = run_round(fleet, make_spec(fleet, mode=mode), ops=ops)
    assert isinstance(outcome, Summed)
    assert np.array_equal(outcome.sums[B].values, np.ones(5))
    assert not outcome.rejected


@pytest.mark.parametrize("stage", STAGES)
def test_a_device_killed_after_saving_and_before_replying_answers_the_same_when_it_is_back(
    stage: str, tmp_path: Path
) -> None:
    """On real files: the first process dies with its reply; the second one gives it."""
    fleet = make_fleet(5)
    one = ParticipantId(1)

    def process() -> DeviceSession:
        ledger = FileLedger(tmp_path, fleet.identities[0], new=True)
        return DeviceSession(
            ledger=ledger, identity=fleet.identities[0], enrolled=fleet.enrolled(ParticipantId(1)), policy=fleet.policy
        )

    fleet.sessions[one] = process()
    a = Round(fleet=fleet, spec=make_spec(fleet))
    state = a.reach(stage)
    lost = a.ask(one, state.requests[one])
    fleet.sessions[one] = process()
    assert a.ask(one, state.requests[one]) == lost
    assert not isinstance(lost, Refusal)
    state = a.finish_stage(state)
    while not isinstance(state, Summed):
        state = a.finish_stage(state)
    assert np.array_equal(state.sums[B].values, np.ones(5))


def test_a_device_that_lost_its_ledger_is_a_dropout_not_a_danger() -> None:
    fleet = make_fleet(6)
    a = Round(fleet=fleet, spec=make_spec(fleet))
    state = a.reach("mask")
    fleet.ledgers[ParticipantId(1)].dumped.clear()
    assert isinstance(a.ask(ParticipantId(1), state.requests[ParticipantId(1)]), Refusal)
    while not isinstance(state, Summed):
        state = a.finish_stage(state)
    assert np.array_equal(state.sums[B].values, [0, 1, 1, 1, 1, 1])


def test_after_an_abort_the_next_attempt_without_the_blamed_sums() -> None:
    fleet = make_fleet(6)
    spec = make_spec(fleet)
    gone = [Op(kind="drop", stage="mask", member=ParticipantId(i)) for i in (5, 6)]
    aborted = run_round(fleet, spec, ops=gone)
    assert aborted.restartable
    assert aborted.blamed == {5, 6}
    people = tuple(p for p in spec.participants if p.participant_id not in aborted.blamed)
    again = make_spec(fleet, participants=people, attempt=2)
    outcome = run_round(fleet, again, inputs={p.participant_id: {B: np.ones(6, np.float32)} for p in people})
    assert isinstance(outcome, Summed)
    assert np.array_equal(outcome.sums[B].values, np.full(6, 4.0))
