"""What one enrolled device may ask of the gateway: how often, how much at once, and each signed timestamp once."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from fedpeft.clock import Clock
from fedpeft_server.rate_limit import RateLimit

__all__ = ["AtOnce", "SignedTimes"]


class AtOnce:
    """Requests that are being answered, by device. One event loop.

    Args:
        requests, large: of one device at once: all of them, and those with a large body.
        rate: of its requests.
        told_after_s: before a device hears that it asks too often. A refusal ends the connection: one that asked again
            at once made a handshake of each, most of what its flood cost.
    """

    def __init__(self, *, requests: int, large: int, rate: RateLimit, told_after_s: float = 0.0) -> None:
        self._requests, self._large, self._rate, self._told_after_s = requests, large, rate, told_after_s
        self._all: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def allows(self, device: str, *, large: bool) -> bool:
        """Whether this device may ask now; counts against its rate if so."""
        if self._all[device] >= self._requests or (large and self._bodies[device] >= self._large):
            return False
        return self._rate.allows(device)

    async def refused(self, device: str) -> None:
        """Returns when this device may hear that it asks too often; at once where ``requests`` of its refusals wait."""
        if self._refused[device] >= self._requests:
            return
        with _counted(device, self._refused):
            await asyncio.sleep(self._told_after_s)

    @contextmanager
    def one(self, device: str, *, large: bool) -> Iterator[None]:
        """A request, until the block is left."""
        with _counted(device, *((self._all, self._bodies) if large else (self._all,))):
            yield


@contextmanager
def _counted(device: str, *counters: Counter[str]) -> Iterator[None]:
    """One more of this device in each, until the block is left."""
    for counter in counters:
        counter[device] += 1
    try:
        yield
    finally:
        for counter in counters:
            counter[device] -= 1
            if not counter[device]:
                del counter[device]


class SignedTimes:
    """Timestamps that were signed and taken: one that comes twice is a replay.

    Args:
        clock: monotonic.
        good_s: for so long after it has come a timestamp could be taken; then it is forgotten.
    """

    def __init__(self, clock: Clock, good_s: float) -> None:
        self._clock, self._good_s = clock, good_s
        self._seen: dict[bytes, set[datetime]] = {}
        self._order: deque[tuple[float, bytes, datetime]] = deque()

    def is_first(self, key: bytes, at: datetime) -> bool:
        """Whether this key's timestamp is new; it is not any more."""
        now_s = self._clock.monotonic_s()
        while self._order and self._order[0][0] < now_s - self._good_s:
            _, whose, old = self._order.popleft()
            times = self._seen[whose]
            times.discard(old)
            if not times:
                del self._seen[whose]
        times = self._seen.setdefault(key, set())
        if at in times:
            return False
        times.add(at)
        self._order.append((now_s, key, at))
        return True
