"""A malicious coordinator asks the same devices for a second sum of a round, under every name that it can give it.

Until ADR 0011 the terms' run was ``RUN#N`` with N at the coordinator's will, and a device's memory went by that name:
``RUN#2`` gave it the inputs of ``RUN#1`` once more, over other survivors.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fedpeft import secagg
from fedpeft.config.model import Rounds
from fedpeft.entropy import Entropy
from fedpeft.ids import BlockId
from fedpeft.round.coordinator import SecureSum, run_round
from fedpeft.round.task import Member
from fedpeft.testing.clock import FakeClock
from fedpeft.testing.fleet import ToyFleet, enrol, exact_terms, toy_task
from fedpeft.testing.network import InMemoryTransport
from fedpeft.testing.trainers import GivenTrainer, one_hot, toy_plan, toy_spec, toy_state

N = 6
SPEC = toy_spec({"head": N})
PLAN = toy_plan(SPEC, secagg=exact_terms(N))
HEAD = BlockId("head")


def asked(
    fleet: ToyFleet, members: Sequence[Member], *, run_id: str | None = None, round_id: int = 1, attempt: int = 1
) -> secagg.Summed | secagg.Aborted:
    """One sum as this coordinator wants it; ``run_id`` None: the honest one."""

    def open_sum(spec: secagg.RoundSpec, identity: secagg.IdentityKey, entropy: Entropy) -> SecureSum:
        named = spec if run_id is None else replace(spec, run_id=run_id)
        return SecureSum(named, identity, entropy)

    return run_round(
        toy_task(PLAN, round_id=round_id, attempt=attempt, state=toy_state(SPEC)),
        toy_state(SPEC),
        members,
        InMemoryTransport(fleet.handles, FakeClock()),
        rounds=Rounds(fit_deadline_s=100.0, stage_deadline_s=10.0),
        identity=fleet.coordinator,
        entropy=fleet.entropy,
        observe=lambda event: None,
        open_sum=open_sum,
    ).result


@pytest.mark.parametrize(
    ("run_id", "round_id", "attempt"),
    [
        (f"{PLAN.run_id}#2", 1, 1),
        (f"{PLAN.run_id}#1", 1, 9),
        (f"{PLAN.run_id}#", 1, 2),
        (f"{PLAN.run_id} ", 1, 2),
        (f"#{PLAN.run_id}", 1, 2),
        (None, 1, 2),
        (None, 1, 10**6),
    ],
)
def test_no_second_sum_of_a_round_under_any_name_or_number(run_id: str | None, round_id: int, attempt: int) -> None:
    fleet = enrol({f"d{i}": GivenTrainer(SPEC, {"head": one_hot(N, i)}) for i in range(N)})
    members = fleet.members()
    first = asked(fleet, members, round_id=2)
    assert isinstance(first, secagg.Summed)
    np.testing.assert_array_equal(first.sums[HEAD].values, np.ones(N))
    again = asked(fleet, members[1:], run_id=run_id, round_id=round_id + 1, attempt=attempt)
    assert isinstance(again, secagg.Aborted), "the difference is the first device's update"
    assert again.rejected.keys() == set(range(1, N))
    earlier = asked(fleet, members[1:], run_id=run_id, round_id=1, attempt=attempt)
    assert isinstance(earlier, secagg.Aborted), "nor of a round before it"
