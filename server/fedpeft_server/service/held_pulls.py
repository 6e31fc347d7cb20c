"""Pulls that wait for a message: within a round a device asks before there is anything, and is answered at once.

That saves each exchange a way over the network, from the wake-up to the look that follows it; the CPU time is the same
(docs/adr/0056). Between rounds a device waits on its wake-up stream instead, which costs nothing meanwhile.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Protocol

from fedpeft.ids import NodeId

__all__ = ["LONGEST_S", "HeldPulls", "Line"]

LONGEST_S = 5.0
"""A device waits 10 s for an answer."""


class Line(Protocol):
    """What a pull came by, and its answer leaves by: ``LimitedProtocol``."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody would read an answer."""
        ...

    def telling(self, tell: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block ``tell`` is called, in the event loop, as soon as nobody would."""
        ...


class HeldPulls:
    """Of one event loop; ``ring`` and ``close`` may be called from any thread.

    Args:
        is_due: whether a message waits for a node now.
        missed: told of a node whose pull ended with its connection while a message waits: ``ring`` may have said
            before that somebody holds it.
    """

    def __init__(self, is_due: Callable[[NodeId], bool], missed: Callable[[NodeId], None] = lambda node: None) -> None:
        self._is_due, self._missed = is_due, missed
        self._held: dict[NodeId, set[asyncio.Future[None]]] = {}
        self._closed = False

    async def wait(self, node: NodeId, seconds: float, line: Line | None = None) -> bool:
        """Returns when a message waits for this node, or after so many seconds, ``LONGEST_S`` at most.

        Args:
            line: the wait ends with it; None: it cannot be lost.

        Returns:
            Whether anybody would still read an answer.
        """
        rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.setdefault(node, set()).add(rung)
        let_go = partial(self._let_go, node, rung)
        try:
            with nullcontext() if line is None else line.telling(let_go):
                # In this order: who sends makes it due first and rings second.
                if not (self._closed or rung.done() or self._is_due(node)):
                    async with asyncio.timeout(min(seconds, LONGEST_S)):
                        await rung
        except TimeoutError:
            pass
        finally:
            let_go()
        if line is None or not line.is_gone:
            return True
        if self._is_due(node):
            self._missed(node)
        return False

    def ring(self, node: NodeId) -> bool:
        """A message waits for this node; whether anybody holds a pull for it, as far as is known."""
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

    def _let_go(self, node: NodeId, rung: asyncio.Future[None]) -> None:
        """The pull is held no longer, now; whoever waits goes on."""
        held = self._held.get(node, set())
        held.discard(rung)
        if not held:
            self._held.pop(node, None)
        if not rung.done():
            rung.set_result(None)


def _release(rung: asyncio.Future[None]) -> None:
    def done() -> None:
        if not rung.done():
            rung.set_result(None)

    with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
        rung.get_loop().call_soon_threadsafe(done)
