"""How often one caller may ask: a token bucket for each, in bounded memory."""

from collections import OrderedDict

from fedpeft.clock import Clock

__all__ = ["RateLimit"]


class RateLimit:
    """Token buckets by caller. Not thread-safe: one event loop, or the caller's lock.

    Args:
        per_s: how many requests a second are allowed in the long run.
        burst: how many at once.
        clock: monotonic.
        callers: how many are remembered; the one that was quiet longest is forgotten first.
    """

    def __init__(self, *, per_s: float, burst: int, clock: Clock, callers: int = 4096) -> None:
        self._per_s, self._burst, self._clock, self._callers = per_s, float(burst), clock, callers
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, caller: str) -> bool:
        """Whether this request may go on; counts it if so."""
        now = self._clock.monotonic_s()
        left, since = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        return allowed
