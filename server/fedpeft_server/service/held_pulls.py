"""Pulls that wait for a message: within a round a device asks before there is anything, and is answered at once.

That saves each exchange a way over the network, from the wake-up to the look that follows it; the CPU time is the same
(docs/adr/0056). Between rounds a device waits on its wake-up stream instead, which costs nothing meanwhile.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fedpeft.ids import NodeId

__all__ = ["LONGEST_S", "HeldPulls"]

LONGEST_S = 5.0
"""A device waits 10 s for an answer."""


class HeldPulls:
    """Of one event loop; ``ring`` and ``close`` may be called from any thread.

    Args:
        is_due: whether a message waits for a node now.
    """

    def __init__(self, is_due: Callable[[NodeId], bool]) -> None:
        self._is_due = is_due
        self._held: dict[NodeId, set[asyncio.Future[None]]] = {}
        self._closed = False

    async def wait(self, node: NodeId, seconds: float) -> None:
        """Returns when a message waits for this node, or after so many seconds, ``LONGEST_S`` at most."""
        rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.setdefault(node, set()).add(rung)
        try:
            # In this order: who sends makes it due first and rings second.
            if not (self._closed or self._is_due(node)):
                async with asyncio.timeout(min(seconds, LONGEST_S)):
                    await rung
        except TimeoutError:
            pass
        finally:
            held = self._held[node]
            held.discard(rung)
            if not held:
                del self._held[node]

    def ring(self, node: NodeId) -> bool:
        """A message waits for this node; whether anybody holds a pull for it."""
        held = tuple(self._held.get(node, ()))
        for rung in held:
            _release(rung)
        return bool(held)

    def close(self) -> None:
        """Every pull is answered now, and none is held any more."""
        self._closed = True
        for held in list(self._held.values()):
            for rung in tuple(held):
                _release(rung)


def _release(rung: asyncio.Future[None]) -> None:
    def done() -> None:
        if not rung.done():
            rung.set_result(None)

    with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
        rung.get_loop().call_soon_threadsafe(done)
