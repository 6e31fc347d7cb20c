"""The public ports of the gRPC service: bytes are counted before gRPC sees them.

gRPC keeps header fields that never end (HTTP/2 CONTINUATION): one connection of a stranger cost 43 to 105 MiB, one of
an enrolled device 100, and none of its options limits that. So what listens here hands bytes on to gRPC's own port on
loopback, as they are (TLS ends there), and ends a connection that has sent more than it may, or lasts longer.

Headers are never answered before they end. So a connection that may last has an allowance that what it is answered
fills up again: a base fetched over it, or calls now and then, take any number of bytes; headers take the allowance.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from fedpeft.deployment.client_hello import HELLO_MAX_BYTES, read_client_hello
from fedpeft_server.origins import site_of
from fedpeft_server.service.crowd import Crowd
from fedpeft_server.service.one_port import LOOK_S

__all__ = ["ENROL_LIMITS", "SERVICE_LIMITS", "CountedRelay", "RelayLimits"]

PIECE = 16 * 1024
ANSWER_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What one peer may cost.

    Args:
        connections: of those whose owner is not known, at once; see ``Crowd`` for which goes.
        sent_bytes: of such a connection, from the peer, TLS included.
        silence_s: until the whole ClientHello; nothing is opened before, so a handshake that begins costs gRPC nothing.
        life_s: of such a connection; gRPC closes it in an orderly way before.
        of_one: connections of one owner at once; the oldest goes.
        owned_bytes: that a connection may send ahead of what it is answered, once its owner is known.
        answers_a_byte: bytes of answers that give it one byte more.
        more_per_s: bytes that each second gives it.
    """

    connections: int = 64
    sent_bytes: int = 128 * 1024
    silence_s: float = 10.0
    life_s: float = 75.0
    of_one: int = 4
    owned_bytes: int = 64 * 1024
    answers_a_byte: int = 64
    more_per_s: float = 16.0


ENROL_LIMITS = RelayLimits(connections=48)
"""Nobody's connection is known there: it may send a few requests of ``rpc.REQUEST_MAX_BYTES``. Each costs gRPC some
100 KiB, and forty devices may join at once."""
SERVICE_LIMITS = RelayLimits(sent_bytes=16 * 1024, life_s=30.0)
"""A handshake with a certificate and the first call, which says whose connection it is, take 4 KiB."""


class _Connection:
    """One peer's.

    Args:
        task: relays it.
        limits: before its owner is known, and after.
        now_s: of the event loop.
    """

    def __init__(self, task: "asyncio.Task[None]", limits: RelayLimits, now_s: float) -> None:
        self.task, self._limits, self.owner = task, limits, ""
        self._left, self._since_s = float(limits.sent_bytes), now_s

    def take_owner(self, owner: str) -> None:
        """From now on it has an allowance of its own."""
        self.owner, self._left = owner, float(self._limits.owned_bytes)

    def may_send(self, size: int, now_s: float) -> bool:
        """Whether so many bytes more are within its allowance; takes them."""
        if self.owner:
            self._fill((now_s - self._since_s) * self._limits.more_per_s)
        self._since_s = now_s
        self._left -= size
        return self._left >= 0

    def answered(self, size: int) -> None:
        """So many bytes went back."""
        if self.owner:
            self._fill(size / self._limits.answers_a_byte)

    def _fill(self, more: float) -> None:
        self._left = min(self._limits.owned_bytes, self._left + more)


class CountedRelay:
    """Hands connections of one listening socket on; lives in the running event loop.

    Args:
        listening: bound and listening. Closed by ``stop``. None: ``take`` brings its connections.
        port: on 127.0.0.1, where they go.
        limits: of each.
    """

    def __init__(self, listening: socket.socket | None, port: int, limits: RelayLimits = ENROL_LIMITS) -> None:
        self._listening, self._port, self._limits = listening, port, limits
        self._unknown: Crowd[_Connection] = Crowd(limits.connections)
        self._owned: dict[str, dict[_Connection, None]] = {}
        self._peers: dict[int, tuple[str, _Connection]] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()
        self._taking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Returns once connections are taken."""
        if self._listening is not None:
            self._server = await asyncio.start_server(self._accept, sock=self._listening, limit=PIECE)

    def take(self, connection: socket.socket) -> None:
        """One that is accepted, non-blocking and unread; in the event loop's thread."""
        task = self._loop.create_task(self._take(connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _take(self, connection: socket.socket) -> None:
        peer = asyncio.StreamReader(limit=PIECE)
        protocol = asyncio.StreamReaderProtocol(peer)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            return
        await self._accept(peer, asyncio.StreamWriter(transport, protocol, peer, self._loop))

    async def stop(self) -> None:
        """Takes no more, and ends those that are open."""
        if self._server is not None:
            self._server.close()
        owned = [one for theirs in self._owned.values() for one in theirs]
        tasks = [one.task for one in (*self._unknown, *owned)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def origin(self, port: int) -> str:
        """The address of the peer whose bytes come from this port of 127.0.0.1; empty: nobody's."""
        return self._peers[port][0] if port in self._peers else ""

    def belongs_to(self, port: int, owner: str) -> None:
        """Who has shown to be the peer whose bytes come from this port."""
        _, connection = self._peers.get(port, ("", None))
        if connection is None or connection.owner == owner:
            return
        self._forget(connection)
        connection.take_owner(owner)
        theirs = self._owned.setdefault(owner, {})
        theirs[connection] = None
        if len(theirs) > self._limits.of_one:
            self._end(next(iter(theirs)))

    async def _accept(self, peer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("Expected to run in a task.")
        connection = _Connection(task, self._limits, self._loop.time())
        if (excess := self._unknown.enter(connection, site_of(_address(back)))) is not None:
            self._end(excess)
        try:
            # Cancelled when it is to end; asyncio would write that to the log as a failure.
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._relay(connection, peer, back)
        finally:
            self._forget(connection)
            back.transport.abort()

    def _end(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.task.cancel()

    def _forget(self, connection: _Connection) -> None:
        self._unknown.leave(connection)
        theirs = self._owned.get(connection.owner, {})
        theirs.pop(connection, None)
        if not theirs:
            self._owned.pop(connection.owner, None)

    async def _relay(self, connection: _Connection, peer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.silence_s):
            first = await _client_hello(peer)
        if not first:
            return
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as inner:
            inner.setblocking(False)
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._limits.silence_s):
                await self._loop.sock_connect(inner, ("127.0.0.1", self._port))
            port = int(inner.getsockname()[1])
            self._peers[port] = (_address(back), connection)
            ending = self._loop.call_later(self._limits.life_s, self._outlived, connection)
            sending = asyncio.create_task(self._send(connection, first, peer, inner))
            try:
                # From the socket itself: a base of gigabytes goes this way, and streams copy what they read twice.
                while piece := await self._loop.sock_recv(inner, ANSWER_PIECE):
                    connection.answered(len(piece))
                    back.write(piece)
                    await back.drain()
            finally:
                ending.cancel()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                del self._peers[port]
        await _closed(back)

    def _outlived(self, connection: _Connection) -> None:
        if not connection.owner:
            connection.task.cancel()

    async def _send(
        self, connection: _Connection, first: bytes, peer: asyncio.StreamReader, inner: socket.socket
    ) -> None:
        piece = first
        try:
            while piece and connection.may_send(len(piece), self._loop.time()):
                await self._loop.sock_sendall(inner, piece)
                piece = await peer.read(PIECE)
            if not piece:
                inner.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        connection.task.cancel()


async def _client_hello(peer: asyncio.StreamReader) -> bytes:
    """The first bytes of a connection, with a whole ClientHello at their beginning; empty: it ended, or is no TLS.

    One that comes in pieces is not read anew for each: sixteen thousand of a byte would cost a minute.
    """
    first = b""
    while piece := await peer.read(HELLO_MAX_BYTES - len(first)):
        first += piece
        try:
            if read_client_hello(first) is not None:
                return first
        except ValueError:
            break
        await asyncio.sleep(LOOK_S)
    return b""


async def _closed(back: asyncio.StreamWriter) -> None:
    """What was written has left, or the peer does not take it."""
    back.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await back.wait_closed()


def _address(writer: asyncio.StreamWriter) -> str:
    """The peer's, without its port; one that came by an IPv6 socket with IPv4 as that."""
    name = writer.get_extra_info("peername")
    return str(name[0]).removeprefix("::ffff:") if name else ""
