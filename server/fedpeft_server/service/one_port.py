"""One public port for everything, where a network lets devices out on one only: a connection goes by its ClientHello.

It is looked at (``MSG_PEEK``), not taken: whoever gets the connection reads its first byte, and limits of its own hold.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from fedpeft.deployment.client_hello import HELLO_MAX_BYTES, Way, read_client_hello, way_of
from fedpeft_server.origins import origin_of
from fedpeft_server.service.connection_limits import ConnectionTimeouts, SilentConnections, open_window
from fedpeft_server.service.crowd import Crowd

__all__ = ["OnePort"]

LOOK_S = 0.02
"""Between looks at a ClientHello of which more is to come."""


class OnePort:
    """Hands connections of one listening socket on; lives in the running event loop.

    Args:
        listening: bound and listening. Closed by ``stop``.
        ways: who takes a connection, non-blocking and unread, and closes it.
        timeouts: ``silence_s`` for a first byte, ``handshake_s`` for the whole ClientHello; ``silent`` and
            ``handshakes`` connections at once; see ``Crowd`` for which goes.
    """

    def __init__(
        self,
        listening: socket.socket,
        ways: Mapping[Way, Callable[[socket.socket], None]],
        timeouts: ConnectionTimeouts | None = None,
    ) -> None:
        self._timeouts = timeouts or ConnectionTimeouts()
        self._listening, self._ways = listening, ways
        self._looking: set[asyncio.Task[None]] = set()
        self._crowd: Crowd[asyncio.Task[None]] = Crowd(self._timeouts.handshakes)
        self._silent = SilentConnections(listening, self._spoke, self._timeouts)

    async def stop(self) -> None:
        """Takes no more, and ends those that have not been handed on."""
        self._silent.close()
        self._listening.close()
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

    def _spoke(self, connection: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._hand_on(connection))
        self._looking.add(task)
        task.add_done_callback(self._looked)
        if (excess := self._crowd.enter(task, origin_of(connection))) is not None:
            excess.cancel()

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking.discard(task)
        self._crowd.leave(task)

    async def _hand_on(self, connection: socket.socket) -> None:
        way = None
        try:
            with suppress(OSError, ValueError, TimeoutError):  # not TLS, not in time, or gone
                async with asyncio.timeout(self._timeouts.handshake_s):
                    way = await self._way(connection)
        finally:
            if way is None:
                connection.close()
        if way is not None:
            if way is not Way.FLEET:
                open_window(connection)  # its relay reads pieces of its own
            self._ways[way](connection)

    async def _way(self, connection: socket.socket) -> Way | None:
        seen = 0
        while True:
            records = connection.recv(HELLO_MAX_BYTES, socket.MSG_PEEK)
            if not records:
                return None
            if len(records) > seen and (hello := read_client_hello(records)) is not None:
                return way_of(hello)
            seen = len(records)
            await asyncio.sleep(LOOK_S)
