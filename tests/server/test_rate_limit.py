"""Rate limits by caller."""

from fedpeft.testing.clock import FakeClock
from fedpeft_server.rate_limit import RateLimit


def test_a_burst_is_allowed_then_the_rate_and_others_do_not_suffer():
    clock = FakeClock()
    limit = RateLimit(per_s=2.0, burst=3, clock=clock)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    clock.advance(0.5)
    assert [limit.allows("a") for _ in range(2)] == [True, False]
    clock.advance(3600)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]


def test_callers_are_forgotten_not_collected():
    limit = RateLimit(per_s=1.0, burst=1, clock=FakeClock(), callers=10)
    assert all(limit.allows(str(number)) for number in range(1000))
    assert len(limit._buckets) == 10
