"""Whatever the network does, the sum is exact over the survivors or there is none.

Failures covered: lost, late, repeated, reordered and corrupted messages both ways, restarted devices, stages closed
early; full and fast mode; blocks with different owners. Non-failures: a device that is named a survivor while its reply
to a later stage is lost. Not covered here: hostile peers (tests/secagg/test_hostile_*.py). One-hot inputs: a 2 is a
replay, a missing 1 is a loss. Known nondeterminism: none.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft.ids import BlockId, ParticipantId
from fedpeft.ring import SumRange
from fedpeft.secagg import Mode, Summed, SummedBlock
from fedpeft.testing.secagg import STAGES, Op, run_round
from fedpeft.testing.secagg_fleet import make_fleet, make_spec

KINDS = ("drop", "delay", "duplicate", "corrupt", "restart", "reorder", "advance")
DEVICES = (5, 6, 7)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, Mode, list[int], list[Op]]:
    devices = draw(st.sampled_from(DEVICES))
    op = st.builds(
        Op,
        kind=st.sampled_from(KINDS),
        stage=st.sampled_from(STAGES),
        member=st.integers(1, devices).map(ParticipantId),
        request=st.booleans(),
        byte=st.floats(0, 1, exclude_max=True),
    )
    second_block_owners = draw(st.lists(st.integers(1, devices), unique=True))
    return devices, draw(st.sampled_from(Mode)), second_block_owners, draw(st.lists(op, max_size=6))


def the_sum_is_exact_or_there_is_none(schedule: tuple[int, Mode, list[int], list[Op]]) -> None:
    devices, mode, second, ops = schedule
    fleet = make_fleet(devices)
    blocks = [
        SummedBlock(block_id=BlockId(name), ranges=(SumRange(length=devices, max_abs=1.0, exact=True),))
        for name in ("all", "some")
    ]
    spec = make_spec(fleet, blocks, mode=mode)
    owns = {
        ParticipantId(i): frozenset({BlockId("all"), BlockId("some")} if i in second else {BlockId("all")})
        for i in range(1, devices + 1)
    }
    outcome = run_round(fleet, spec, ops=ops, owns=owns)
    if not isinstance(outcome, Summed):
        assert outcome.detail
        return
    for block, total in outcome.sums.items():
        expected = np.array(
            [float(i in outcome.survivors and block in owns[ParticipantId(i)]) for i in range(1, devices + 1)]
        )
        assert np.array_equal(total.values, expected)
        assert total.owners == expected.sum() >= 3
    assert set(outcome.sums) | set(outcome.skipped) == {"all", "some"}


@pytest.mark.e2e
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schedules())
def test_schedules_of_failures_give_an_exact_sum_or_none(schedule: tuple) -> None:
    the_sum_is_exact_or_there_is_none(schedule)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules())
def test_ten_thousand_schedules_of_failures_give_an_exact_sum_or_none(schedule: tuple) -> None:
    the_sum_is_exact_or_there_is_none(schedule)


def test_without_failures_every_device_is_in_the_sum() -> None:
    fleet = make_fleet(5)
    outcome = run_round(fleet, make_spec(fleet))
    assert isinstance(outcome, Summed)
    assert np.array_equal(outcome.sums[BlockId("b")].values, np.ones(5))
