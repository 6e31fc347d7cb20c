"""When a device's training process may go."""

import pytest

from fedpeft.round.transport import Stage
from fedpeft.testing.clock import FakeClock
from fedpeft_client.process.agent import IN_ROUND_S, IdleTimer

BETWEEN = (Stage.PROFILE, Stage.REVEAL)


@pytest.mark.parametrize("stage", list(Stage))
def test_the_worker_goes_soon_between_rounds_and_stays_long_within_one(stage: Stage) -> None:
    clock = FakeClock()
    idle = IdleTimer(clock, 300.0)
    assert not idle.is_over, "nothing was asked yet"
    idle.answered(stage)
    clock.advance(299.0)
    assert not idle.is_over
    clock.advance(1.0)
    assert idle.is_over == (stage in BETWEEN)
    clock.advance(IN_ROUND_S)
    assert idle.is_over


def test_a_later_request_is_what_counts() -> None:
    clock = FakeClock()
    idle = IdleTimer(clock, 300.0)
    idle.answered(Stage.REVEAL)
    clock.advance(250.0)
    idle.answered(Stage.FIT)
    clock.advance(250.0)
    assert not idle.is_over


def test_a_site_may_keep_it() -> None:
    clock = FakeClock()
    idle = IdleTimer(clock, 0.0)
    idle.answered(Stage.REVEAL)
    clock.advance(1e9)
    assert not idle.is_over
