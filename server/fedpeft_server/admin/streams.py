"""Server-sent events: the overview whenever it changed, looked up once for all who watch, and for few at once."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from fedpeft.clock import Clock
from fedpeft_server.admin.http import Refusal

__all__ = ["BODIES", "BODIES_OF_A_TOKEN", "STREAMS", "STREAMS_OF_A_TOKEN", "Places", "Watch"]

LOOK_S = 1.0
"""Between two looks at what there is to show."""
LONGEST_S = 900.0
"""Then a stream ends, and a browser opens it again by itself."""
STREAMS, STREAMS_OF_A_TOKEN = 24, 6
"""Open at once: of events and of downloads together."""
BODIES, BODIES_OF_A_TOKEN = 8, 2
"""On their way at once: a body may have 1 MiB and take 10 s."""


class Places:
    """How much of a kind there is at once, and whose. One event loop.

    Args:
        of_one, total: of one token, and of all.
        what: they are, for the refusal.
    """

    def __init__(self, *, of_one: int, total: int, what: str) -> None:
        self._of_one, self._total, self._what = of_one, total, what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, token_id: str) -> Iterator[None]:
        """A place, until the block is left.

        Raises:
            Refusal: there is none.
        """
        if self._taken[token_id] >= self._of_one or self._taken.total() >= self._total:
            raise Refusal(429, f"Too many {self._what}; end one.", {"retry-after": "5"})
        self._taken[token_id] += 1
        try:
            yield
        finally:
            self._taken[token_id] -= 1
            self._taken += Counter()  # forgets who has none


class Watch:
    """The overview, looked up at most every ``LOOK_S`` however many watch. One event loop.

    Args:
        look: makes the overview; blocking.
        clock: monotonic.
    """

    def __init__(self, look: Callable[[], object], clock: Clock) -> None:
        self._look, self._clock = look, clock
        self._lock = asyncio.Lock()
        self._seen, self._at_s, self._closed = b"", -LOOK_S, False

    def close(self) -> None:
        """Ends every stream within ``LOOK_S``; from any thread."""
        self._closed = True

    async def events(self, is_good: Callable[[], bool]) -> AsyncIterator[bytes]:
        """What a stream sends.

        Args:
            is_good: whether its caller may still see it; asked before each look.
        """
        end_s, shown = self._clock.monotonic_s() + LONGEST_S, b""
        yield b"retry: 2000\n\n"
        while not self._closed and self._clock.monotonic_s() < end_s and is_good():
            found = await self._overview()
            # A comment now and then makes the connection fail when nobody is there any more.
            yield b"event: status\ndata: " + found + b"\n\n" if found != shown else b": \n\n"
            shown = found
            await asyncio.sleep(LOOK_S)

    async def _overview(self) -> bytes:
        async with self._lock:
            if self._clock.monotonic_s() - self._at_s >= LOOK_S:
                self._seen = json.dumps(await asyncio.to_thread(self._look)).encode()
                self._at_s = self._clock.monotonic_s()
            return self._seen
