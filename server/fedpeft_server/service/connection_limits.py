"""Accepting connections: nobody costs more than a socket before they speak, and nobody takes long to.

A TLS connection in OpenSSL and the event loop is some 36 KiB before a byte has come, so 500 idle sockets were 18 MiB.
Here a connection is a file descriptor until its first byte is there; then its handshake begins, few at once and for a
limited time; then it is the HTTP protocol's, which has limits of its own (``fedpeft_server.service.listener``).
Whenever there are too many of a kind one of whoever has most of them goes: a crowd at one address keeps itself out, and
one from everywhere can make devices try again.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from fedpeft_server.origins import origin_of
from fedpeft_server.service.crowd import Crowd

__all__ = ["ConnectionLimiter", "ConnectionTimeouts", "SilentConnections", "open_window"]

UNKNOWN_WINDOW = 32 * 1024
"""Bytes that a peer may have on the way who has not been let through: an event loop reads 256 KiB of them at once, into
memory of that connection alone."""
ACCEPTED_AT_ONCE = 64
PAUSE_S = 0.5
"""Without file descriptors left; connections wait in the kernel meanwhile."""

_log = logging.getLogger(__name__)


def open_window(connection: socket.socket) -> None:
    """Let this peer send as fast as the network takes it."""
    _clamp(connection, 1 << 30)


def _clamp(connection: socket.socket, window: int) -> None:
    if hasattr(socket, "TCP_WINDOW_CLAMP"):
        with suppress(OSError):  # it is gone
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, window)


class ConnectionTimeouts:
    """How long and for how many an application waits.

    Args:
        silence_s: for the first byte, and then for the headers of each request.
        handshake_s: for the TLS handshake.
        silent: connections that have not said anything, and as many that have not asked for anything.
        handshakes: at once.
        kept: connections that have asked for something and stay, which are enrolled devices'.
        kept_of_one: those of one device, or of one access token.
    """

    def __init__(
        self,
        *,
        silence_s: float = 10.0,
        handshake_s: float = 10.0,
        silent: int = 200,
        handshakes: int = 64,
        kept: int = 2048,
        kept_of_one: int = 8,
    ) -> None:
        self.silence_s, self.handshake_s, self.silent, self.handshakes = silence_s, handshake_s, silent, handshakes
        self.kept, self.kept_of_one = kept, kept_of_one


class SilentConnections:
    """Connections until their first byte; lives in the running event loop.

    Args:
        listening: bound and listening; made non-blocking. Its owner closes it. None: ``take`` brings all.
        spoke: gets a connection whose first byte is there.
        timeouts: ``silence_s`` and ``silent`` hold here.
    """

    def __init__(
        self, listening: socket.socket | None, spoke: Callable[[socket.socket], None], timeouts: ConnectionTimeouts
    ) -> None:
        self._listening, self._spoke, self._timeouts = listening, spoke, timeouts
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._crowd: Crowd[socket.socket] = Crowd(timeouts.silent)
        self._closed = False
        if listening is not None:
            listening.setblocking(False)
            _clamp(listening, UNKNOWN_WINDOW)  # what is accepted inherits it, before its first byte
            self._open(listening)

    def close(self) -> None:
        """Take no more connections, and let go of these."""
        self._closed = True
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
        for connection in list(self._waiting):
            self._hang_up(connection)

    def take(self, connection: socket.socket) -> None:
        """One that is accepted and non-blocking."""
        if self._closed:
            connection.close()
            return
        self._waiting[connection] = self._loop.call_later(self._timeouts.silence_s, self._hang_up, connection)
        self._loop.add_reader(connection, self._hear, connection)
        if (excess := self._crowd.enter(connection, origin_of(connection))) is not None:
            self._hang_up(excess)

    def _open(self, listening: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                _log.warning("no connection can be taken: %s", error)
                self._loop.remove_reader(listening)
                self._loop.call_later(PAUSE_S, self._open, listening)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.take(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def _hear(self, connection: socket.socket) -> None:
        self._forget(connection)
        self._spoke(connection)

    def _forget(self, connection: socket.socket) -> None:
        self._waiting.pop(connection).cancel()
        self._crowd.leave(connection)
        self._loop.remove_reader(connection)


class ConnectionLimiter:
    """Hands connections of one listening socket to a protocol; lives in the running event loop.

    Args:
        listening: as ``SilentConnections`` has it.
        protocol: makes what speaks to one connection.
        trust: for TLS; None: none.
        timeouts: limits.
    """

    def __init__(
        self,
        listening: socket.socket | None,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        trust: ssl.SSLContext | None,
        timeouts: ConnectionTimeouts,
    ) -> None:
        self._protocol, self._trust, self._timeouts = protocol, trust, timeouts
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._crowd: Crowd[asyncio.Task[None]] = Crowd(timeouts.handshakes)
        self._silent = SilentConnections(listening, self._spoke, timeouts)
        self.take = self._silent.take

    def close(self) -> None:
        """Take no more connections, and let go of those that are not the protocol's yet."""
        self._silent.close()
        for task in self._shaking:
            task.cancel()

    async def wait_closed(self) -> None:
        """Returns when what ``close`` cancelled has ended."""
        await asyncio.gather(*self._shaking, return_exceptions=True)

    def _spoke(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._shake_hands(connection))
        self._shaking.add(task)
        task.add_done_callback(partial(self._shaken, connection))
        if (excess := self._crowd.enter(task, origin_of(connection))) is not None:
            excess.cancel()

    async def _shake_hands(self, connection: socket.socket) -> None:
        limit_s = None if self._trust is None else self._timeouts.handshake_s
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._trust, ssl_handshake_timeout=limit_s
            )
        except OSError:  # not TLS, not in time, or gone
            connection.close()

    def _shaken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._shaking.discard(task)
        self._crowd.leave(task)
        # Too many handshakes and this one has to go, or the listener closes; it may not have begun.
        if task.cancelled():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # a transport in the making hears of it and ends
            connection.close()
