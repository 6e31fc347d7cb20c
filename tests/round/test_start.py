"""Round 1 begins with what plan and base make, or with a state that the plan names: never with a crafted one."""

import numpy as np
import pytest

from fedpeft.adapter import AdapterState
from fedpeft.ids import BlockId, NodeId
from fedpeft.round.messages import Failure, FailureReason, Ready
from fedpeft.round.plan import LearningPlan
from fedpeft.round.start import NEAR, named_start
from fedpeft.round.transport import Stage
from fedpeft.testing.fleet import enrol, exact_terms, fit_request, toy_past, toy_task
from fedpeft.testing.trainers import FROZEN, GivenTrainer, one_hot, toy_plan, toy_spec, toy_state
from fedpeft.wire import decode, encode

SPEC = toy_spec({"head": 4, "bitfit": 5})
STATE = toy_state(SPEC)
PLAN = toy_plan(SPEC, secagg=exact_terms(4))
HEAD = BlockId("head")


def taken(state: AdapterState, plan: LearningPlan = PLAN) -> bool:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(4, i)}) for i in range(4)})
    task = toy_task(plan, past=toy_past(plan, state, rounds=0))
    reply = decode(
        fleet.devices[NodeId(1000)].handle(Stage.FIT, encode(fit_request(fleet, plan, state, task=task))),
        (Ready, Failure),
    )
    if isinstance(reply, Failure):
        assert reply.reason is FailureReason.REFUSED
    return isinstance(reply, Ready)


@pytest.mark.parametrize("block", [HEAD, FROZEN, BlockId("bitfit")])
def test_a_crafted_first_state_is_refused_in_every_block(block: BlockId) -> None:
    assert taken(STATE)
    for moved in (STATE[block] + np.float32(0.125), -STATE[block], STATE[block] * np.float32(100)):
        assert not taken(STATE.replace({block: moved}))


@pytest.mark.parametrize(("apart", "near"), [(0.9 * 2.0**-17, True), (1.1 * 2.0**-17, False), (-1.1 * 2.0**-17, False)])
def test_a_state_is_near_up_to_two_to_the_minus_17_of_its_largest_value(apart: float, near: bool) -> None:
    largest = float(np.abs(STATE[HEAD]).max())
    moved = STATE[HEAD].astype(np.float64)
    moved[np.abs(moved).argmin()] += apart * largest
    assert taken(STATE.replace({HEAD: moved.astype(np.float32)})) == near


def test_the_last_bits_of_another_lapack_are_taken() -> None:
    near = STATE.replace({HEAD: (STATE[HEAD] * np.float32(1 + NEAR / 2)).astype(np.float32)})
    assert near.digests != STATE.digests
    assert taken(near)


def test_zeros_are_zeros() -> None:
    """A block that begins with zeros has no last bits."""
    zeros = STATE.replace({HEAD: np.zeros(4, np.float32)})

    class Zero(GivenTrainer):
        def first_state(self, plan: LearningPlan) -> AdapterState:
            return zeros

    fleet = enrol({f"d{i}": Zero(SPEC, {"head": one_hot(4, i)}) for i in range(4)})
    for state, good in ((zeros.replace({HEAD: np.full(4, 1e-30, np.float32)}), False), (zeros, True)):
        task = toy_task(PLAN, past=toy_past(PLAN, state, rounds=0))
        request = encode(fit_request(fleet, PLAN, state, task=task))
        reply = decode(fleet.devices[NodeId(1000)].handle(Stage.FIT, request), (Ready, Failure))
        assert isinstance(reply, Ready) == good
        fleet.restart(NodeId(1000), wiped=True)


def test_a_state_that_the_plan_names_is_taken_and_no_other() -> None:
    earlier = STATE.replace({HEAD: np.ones(4, np.float32)})
    assert named_start(STATE, STATE) == ""
    plan = PLAN.model_copy(update={"start": named_start(STATE, earlier)})
    assert taken(earlier, plan)
    assert not taken(STATE, plan)
    assert not taken(earlier.replace({HEAD: np.zeros(4, np.float32)}), plan)


def test_the_name_of_a_start_is_a_digest() -> None:
    for wrong in ("x", "A" * 64, "a" * 63):
        with pytest.raises(ValueError, match="start"):
            LearningPlan.model_validate(PLAN.model_dump() | {"start": wrong})
