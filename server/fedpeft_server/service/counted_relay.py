"""The public port of enrolment: bytes are counted before gRPC sees them.

gRPC keeps header fields that never end (HTTP/2 CONTINUATION): one connection of a stranger cost 43 to 105 MiB, and
none of its options limits that. So what listens here hands bytes on to gRPC's own port on loopback, as they are (TLS
ends there), and ends a connection that has sent more than an enrolment can be, or lasts longer.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

__all__ = ["CountedRelay", "RelayLimits"]

PIECE = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What one peer may cost who has not shown who they are.

    Args:
        connections: at once; the oldest goes.
        sent_bytes: of a connection, from the peer, TLS included: a few requests of ``rpc.REQUEST_MAX_BYTES``.
        silence_s: until the first byte; nothing is opened before.
        life_s: of a connection; gRPC closes it in an orderly way before.
    """

    connections: int = 64
    sent_bytes: int = 128 * 1024
    silence_s: float = 10.0
    life_s: float = 75.0


class CountedRelay:
    """Hands connections of one listening socket on; lives in the running event loop.

    Args:
        listening: bound and listening. Closed by ``stop``.
        port: on 127.0.0.1, where they go.
        limits: of each.
    """

    def __init__(self, listening: socket.socket, port: int, limits: RelayLimits | None = None) -> None:
        self._listening, self._port, self._limits = listening, port, limits or RelayLimits()
        self._open: dict[asyncio.Task[None], None] = {}
        self._peers: dict[int, str] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Returns once connections are taken."""
        self._server = await asyncio.start_server(self._accept, sock=self._listening, limit=PIECE)

    async def stop(self) -> None:
        """Takes no more, and ends those that are open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def origin(self, port: int) -> str:
        """The address of the peer whose bytes come from this port of 127.0.0.1; empty: nobody's."""
        return self._peers.get(port, "")

    async def _accept(self, peer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("Expected to run in a task.")
        self._open[task] = None
        while len(self._open) > self._limits.connections:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        try:
            with contextlib.suppress(OSError, TimeoutError):
                await self._relay(peer, back)
        finally:
            self._open.pop(task, None)
            back.transport.abort()

    async def _relay(self, peer: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.silence_s):
            first = await peer.read(PIECE)
        if not first:
            return
        async with asyncio.timeout(self._limits.life_s):
            answers, forward = await asyncio.open_connection("127.0.0.1", self._port, limit=PIECE)
            port = int(forward.get_extra_info("sockname")[1])
            self._peers[port] = _address(back)
            sending = asyncio.create_task(self._send(first, peer, forward))
            try:
                while piece := await answers.read(PIECE):
                    back.write(piece)
                    await back.drain()
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                forward.transport.abort()
                del self._peers[port]
            await _closed(back)

    async def _send(self, first: bytes, peer: asyncio.StreamReader, forward: asyncio.StreamWriter) -> None:
        left, piece = self._limits.sent_bytes, first
        try:
            while piece and (left := left - len(piece)) >= 0:
                forward.write(piece)
                await forward.drain()
                piece = await peer.read(PIECE)
        except OSError:
            piece = b"it broke"
        if piece:
            forward.transport.abort()
        else:
            forward.write_eof()


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
