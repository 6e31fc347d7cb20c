"""The sum without masks, which only measures what the secure one costs, goes through the same round."""

import pytest

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import run_round
from fedpeft.round.task import Member, RoundOutcome
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft_sim.plain_sum import PlainSession, PlainSum

N = 5
SPEC = toy_spec({"head": N})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(N))


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)}, session=PlainSession)


def a_round(fleet: ToyFleet, members: list[Member], round_id: int) -> RoundOutcome:
    return run_round(
        toy_task(PLAN, round_id=round_id, state=STATE),
        STATE,
        members,
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(count=3),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
        open_sum=PlainSum,
    )


def test_a_roster_that_is_held_is_not_sent_again_and_one_that_is_lost_is(fleet: ToyFleet) -> None:
    members = fleet.members()
    outcomes = [a_round(fleet, members, number) for number in (1, 2)]
    fleet.restart(fleet.nodes[0])
    outcomes.append(a_round(fleet, members, 3))
    for outcome in outcomes:
        assert isinstance(outcome.result, secagg.Summed)
        assert outcome.result.sums[BlockId("head")].values.tolist() == [1.0] * N
    assert outcomes[1].traffic["d1"].bytes_down < outcomes[0].traffic["d1"].bytes_down
    assert outcomes[2].traffic["d0"].bytes_down > outcomes[2].traffic["d1"].bytes_down
