"""A coordinator that tells two groups of devices two histories of one run, and then wants a sum over both.

Devices and sums are the product's; the coordinator's code is, too, but for what it remembers. Before ADR 0018 the terms
held no history: a device took any state that its coordinator signed for the round, so two groups could be trained apart
from chosen states and summed together when that tells most.
"""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.adapter import AdapterState
from fedpeft.config.model import Aggregate, Rounds
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import run_round
from fedpeft.round.history import Past
from fedpeft.round.linking import burnt_link, link_of
from fedpeft.round.run_memory import fork_seen
from fedpeft.round.task import Member, RoundOutcome
from fedpeft.round.work import state_digest
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_past, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state

N = 8
SPEC = toy_spec({"head": N})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(N)).model_copy(
    update={"aggregate": Aggregate(weight="uniform", a_round_every=2)}  # whose states travel
)
HEAD = BlockId("head")


@pytest.fixture
def fleet() -> ToyFleet:
    return enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})


def asked(fleet: ToyFleet, members: list[Member], past: Past, state: AdapterState, *, attempt: int = 1) -> RoundOutcome:
    return run_round(
        toy_task(PLAN, round_id=len(past.links) + 1, attempt=attempt, past=past),
        state,
        members,
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
    )


def after(past: Past, outcome: RoundOutcome, state: AdapterState, *, attempt: int = 1) -> Past:
    """With the link of a round with a sum, whatever state is said to follow from it."""
    assert isinstance(outcome.result, secagg.Summed)
    task = toy_task(PLAN, round_id=len(past.links) + 1, attempt=attempt, past=past)
    link = link_of(task, outcome.participants, outcome.result, state=state_digest(state.digests), population=N)
    return past.then(link)


def test_two_histories_have_two_disjoint_sets_of_devices_for_ever(fleet: ToyFleet) -> None:
    members = fleet.members()
    ours, theirs = members[:4], members[4:]
    begun = toy_past(PLAN, STATE, rounds=0)
    moved = STATE.replace({HEAD: np.ones(N, np.float32)})
    one = after(begun, asked(fleet, ours, begun, STATE), STATE)
    other = after(begun, asked(fleet, theirs, begun, STATE, attempt=2), moved, attempt=2)
    for past, state in ((one, STATE), (other, moved)):  # whoever was told one story is lost to the other
        outcome = asked(fleet, members, past, state)
        told = {name for name, account in outcome.traffic.items() if account.ready}
        assert told == {member.profile.device for member in (ours if past is one else theirs)}
        if isinstance(outcome.result, secagg.Summed):
            assert outcome.result.sums[HEAD].owners == 4
    for member in theirs:  # the others had gone on: to them the second story is a replay
        seen = fork_seen(fleet.stores[member.profile.device], PLAN.run_id)
        assert seen is not None, "they have the evidence: two lists and two signatures"
        assert seen.own.links != seen.theirs


def test_a_device_that_saw_a_round_does_not_take_another_end_of_it(fleet: ToyFleet) -> None:
    """The round that it signed for is said to have had other survivors."""
    members, begun = fleet.members(), toy_past(PLAN, STATE, rounds=0)
    outcome = asked(fleet, members, begun, STATE)
    honest = after(begun, outcome, STATE)
    lie = begun.then(replace(honest.links[0], outcome=b"\1" * 32))
    refused = asked(fleet, members, lie, STATE)
    assert isinstance(refused.result, secagg.Aborted)
    assert not any(account.ready for account in refused.traffic.values())
    assert isinstance(asked(fleet, members, honest, STATE, attempt=2).result, secagg.Summed)


def test_an_old_state_is_not_taken_again(fleet: ToyFleet) -> None:
    """To the same devices, in a later round, under a history that is otherwise true."""
    members, begun = fleet.members(), toy_past(PLAN, STATE, rounds=0)
    moved = STATE.replace({HEAD: np.ones(N, np.float32)})
    honest = after(begun, asked(fleet, members, begun, STATE), moved)
    refused = asked(fleet, members, honest, STATE)
    assert isinstance(refused.result, secagg.Aborted)
    assert isinstance(asked(fleet, members, honest, moved, attempt=2).result, secagg.Summed)


def test_a_device_that_was_told_that_a_round_was_burnt_sums_with_nobody_who_was_not(fleet: ToyFleet) -> None:
    members, begun = fleet.members(), toy_past(PLAN, STATE, rounds=0)
    task, digest = toy_task(PLAN, past=begun), state_digest(STATE.digests)
    first = after(begun, asked(fleet, members, begun, STATE), STATE)
    burnt = begun.then(burnt_link(task, state=digest, devices=N, population=N))
    a, b = asked(fleet, members[:4], first, STATE), asked(fleet, members[4:], burnt, STATE, attempt=2)
    assert isinstance(a.result, secagg.Summed)
    assert isinstance(b.result, secagg.Summed)
    for past in (after(first, a, STATE), after(burnt, b, STATE, attempt=2)):
        ready = [name for name, account in asked(fleet, members, past, STATE).traffic.items() if account.ready]
        assert len(ready) == 4
