"""Waiting for devices: long enough for those who come back after a restart, never for one that is away for good."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from fedpeft.testing.clock import FakeClock
from fedpeft_server.jobs.enrolled_transport import EnrolledTransport, gather
from fedpeft_server.jobs.job_runner import Interrupted


@dataclass
class Ward:
    """Four devices are enrolled; one more can be reached with every look, and a look takes a second."""

    here: int
    most: int
    clock: FakeClock = field(default_factory=FakeClock)
    enrolled: int = 4
    stopped: bool = False

    def present(self) -> list[str]:
        found = [f"ward-{number}" for number in range(self.here)]
        self.here = min(self.most, self.here + 1)
        self.clock.advance(1.0)
        return found

    def look(self) -> None:
        if self.stopped:
            raise Interrupted("stopped")

    def wait(self, *, settled_s: float, deadline_s: float = 60.0) -> tuple[list[str], float]:
        """What was told, and how long it took."""
        told: list[str] = []
        begun = self.clock.monotonic_s()
        gather(
            cast("EnrolledTransport", self),
            needed=3, deadline_s=deadline_s, settled_s=begun + settled_s, clock=self.clock,
            interrupted=self.look, tell=told.append,
        )  # fmt: skip
        return told, self.clock.monotonic_s() - begun


def test_a_device_that_is_away_for_good_costs_the_later_rounds_nothing() -> None:
    ward = Ward(here=3, most=3)
    assert ward.wait(settled_s=5.0) == (["3 of 3 devices are here (ward-0, ward-1, ward-2); waiting 4 s at most"], 5.0)
    assert ward.wait(settled_s=0.0) == ([], 1.0)


def test_those_who_come_back_within_the_settling_time_are_not_left_out() -> None:
    told, took = Ward(here=1, most=4).wait(settled_s=5.0)
    assert (len(told), took) == (3, 4.0)


def test_too_few_are_waited_for_until_the_deadline() -> None:
    assert Ward(here=2, most=2).wait(settled_s=0.0, deadline_s=3.0)[1] == 3.0


def test_a_run_that_waits_for_devices_hears_that_it_is_to_end() -> None:
    ward = Ward(here=0, most=0, stopped=True)
    with pytest.raises(Interrupted):
        ward.wait(settled_s=0.0, deadline_s=3600.0)
