"""Bodies of requests: as long as they come on, in memory that all of them share.

What ends a body is a peer that has fallen silent or sends less than ``BodyPace`` asks, not its whole time: 2.5 MB take
20 s at 1 Mbit/s. Large bodies wait for room, in the order in which they came.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.types import Receive

__all__ = ["BodyPace", "BodyRoom", "read_body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPace:
    """How slowly a body may arrive.

    Args:
        silence_s: without a byte, and beyond what the rate allows.
        least_per_s: bytes a second on the whole; 128 kbit/s.
    """

    silence_s: float = 20.0
    least_per_s: float = 16.0 * 1024


async def read_body(receive: Receive, size: int, pace: BodyPace) -> bytes | None:
    """The whole body; None when its sender has gone.

    Args:
        receive: of ASGI.
        size: bytes.
        pace: the least.

    Raises:
        TimeoutError: it came too slowly.
    """
    loop, body, filled = asyncio.get_running_loop(), bytearray(size), 0  # as a whole: one that grows is copied
    begun = loop.time()
    async with asyncio.timeout(pace.silence_s) as limit:
        while filled < size:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")[: size - filled]
            body[filled : filled + len(part)] = part
            filled += len(part)
            now = loop.time()
            limit.reschedule(now + pace.silence_s + min(0.0, begun + filled / pace.least_per_s - now))
    return bytes(body)


class BodyRoom:
    """Memory for bodies that are held at once. One event loop.

    Args:
        total_bytes: of all of them together; one that is larger has it to itself.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = self._left = total_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Room for one body, until the block is left; whoever came first has it first."""
        size = min(size, self._total)
        if self._waiting or size > self._left:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (size, turn)
            self._waiting.append(entry)
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._left += size  # it was given the room and does not take it
                elif entry in self._waiting:  # else ``_give`` came by between its cancellation and this line
                    self._waiting.remove(entry)
                self._give()
                raise
        else:
            self._left -= size
        try:
            yield
        finally:
            self._left += size
            self._give()

    def _give(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            size, turn = self._waiting.popleft()
            if turn.done():  # cancelled, and not yet told
                continue
            self._left -= size
            turn.set_result(None)
