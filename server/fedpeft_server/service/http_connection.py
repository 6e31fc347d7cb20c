"""One HTTP connection of a listener, with limits before the parser: what a peer may send until it is judged.

uvicorn's parser takes header lines and a URL of any length, and ``close`` of a TLS transport goes on reading until the
peer closes too, for 30 s. So bytes are counted before they are parsed, and a connection that ends is not read any more
and is gone a second later. One whose next request comes before its last is answered ends at once. A peer has
``ConnectionTimeouts.silence_s`` for the headers of a request, from its first byte on, however many requests it has had
before.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedpeft_server.origins import origin_of
from fedpeft_server.service.connection_limits import ConnectionTimeouts, open_window
from fedpeft_server.service.crowd import Crowd

__all__ = ["HEADERS", "HEADER_BYTES", "URL_BYTES", "LimitedProtocol", "connection_of"]

HEADER_BYTES = 16 * 1024
"""Of a request's line and headers together; a device's are under 1 KiB."""
HEADERS = 64
URL_BYTES = 2048
JOINED_BYTES = 64 * 1024
LINGERING = 16
LINGER_S = 1.0
"""From the last answer to the end of the connection, so that the answer arrives; the peer may end it before."""

_EXTENSION = "fedpeft.connection"
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n"
    b"cache-control: no-store\r\n\r\n"
)


class LimitedProtocol(HttpToolsProtocol):
    """Subclassed by each listener, which sets the class variables.

    Attributes:
        unheard: connections of one listener that have not asked for anything yet.
        kept: those that have, the one that asked longest ago first.
        owned: those whose owner is known, by owner, the first one first.
        ending: transports that are closed and linger, oldest first.
        timeouts: how long and for how many.
    """

    unheard: ClassVar[Crowd["LimitedProtocol"]]
    kept: ClassVar[dict["LimitedProtocol", None]]
    owned: ClassVar[dict[str, dict["LimitedProtocol", None]]]
    ending: ClassVar[dict[asyncio.Transport, asyncio.TimerHandle]]
    timeouts: ClassVar[ConnectionTimeouts]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        self._transport = _Ending(transport, self.ending)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        self._ended, self._owner = False, ""
        self._tell: Callable[[], None] | None = None
        self._begin_headers()
        self._deadline: asyncio.TimerHandle | None = None
        self._limit_time()
        excess = self.unheard.enter(self, origin_of(transport.get_extra_info("socket")))
        if excess is not None:
            excess.cut()

    def data_received(self, data: bytes) -> None:
        """Feeds the parser no more than the headers that are left may have."""
        rest = memoryview(data)
        while rest and not self._ended:
            if not self._in_headers:
                super().data_received(bytes(rest))
                return
            self._limit_time()
            part, rest = rest[: self._room], rest[self._room :]
            self._room -= len(part)
            super().data_received(bytes(part))
            if self._in_headers and self._room <= 0:
                self.refuse_headers()

    def on_url(self, url: bytes) -> None:
        """See ``httptools.HttpRequestParser``."""
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self.refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See ``httptools.HttpRequestParser``."""
        self._headers += 1
        if self._headers > HEADERS:  # the lines after a chunked body are headers too
            self.refuse_headers()
        if not self._ended:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See ``httptools.HttpRequestParser``."""
        if self._ended:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cut()  # pipelined, which nobody of ours does: thousands of requests come in one read
            return
        self._in_headers = False
        self._cancel_limit()
        self.unheard.leave(self)
        self.kept.pop(self, None)
        self.kept[self] = None
        _bound(self.kept, self.timeouts.kept)
        self.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See ``httptools.HttpRequestParser``."""
        if not self._ended:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """See ``httptools.HttpRequestParser``."""
        if self._ended:
            return
        super().on_message_complete()
        self._begin_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._forget()
        super().connection_lost(exc)
        self._transport.let_go()
        if self.scope is not None:
            self.scope.pop("extensions", None)

    @property
    def is_gone(self) -> bool:
        """Whether nobody would read an answer."""
        return self._ended or self.transport.is_closing()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Within the block ``tell`` is called as soon as nobody would read an answer; one at a time.

        Args:
            tell: called once, in the event loop; at once where it is so already.
        """
        self._tell = tell
        if self.is_gone:
            self._say_gone()
        try:
            yield
        finally:
            self._tell = None

    def belongs_to(self, owner: str) -> None:
        """Who asks on this connection is known; of one owner's connections the oldest goes when there are too many."""
        if self._owner == owner or self.is_gone:
            return
        self._disown()
        self._owner = owner
        open_window(self.transport.get_extra_info("socket"))
        theirs = self.owned.setdefault(owner, {})
        theirs[self] = None
        _bound(theirs, self.timeouts.kept_of_one)

    def refuse_headers(self) -> None:
        """Answer 431, if nothing else is being answered, and end the connection."""
        if self._ended:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_TOO_LARGE)
        self._ended = True
        self._forget()
        self.transport.close()

    def cut(self) -> None:
        """End the connection now, without a word."""
        self._ended = True
        self._forget()
        self.transport.abort()

    def _begin_headers(self) -> None:
        self._in_headers, self._room, self._headers = True, HEADER_BYTES, 0

    def _limit_time(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.timeouts.silence_s, self.cut)

    def _cancel_limit(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _forget(self) -> None:
        self._cancel_limit()
        self.unheard.leave(self)
        self.kept.pop(self, None)
        self._disown()
        self._say_gone()

    def _say_gone(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def _disown(self) -> None:
        theirs = self.owned.get(self._owner, {})
        theirs.pop(self, None)
        if not theirs:
            self.owned.pop(self._owner, None)


def connection_of(scope: Scope) -> LimitedProtocol | None:
    """The connection that a request came by; None where no listener of ours took it."""
    found = scope.get("extensions", {}).get(_EXTENSION)
    return found if isinstance(found, LimitedProtocol) else None


def _bound(connections: dict[LimitedProtocol, None], most: int) -> None:
    while len(connections) > most:
        next(iter(connections)).cut()


class _Ending:
    """A transport that, once it is closed, reads nothing more and is gone after ``LINGER_S``.

    asyncio's own ``close`` of a TLS transport reads and decrypts until the peer agrees to end.
    """

    def __init__(self, inner: asyncio.Transport, ending: dict[asyncio.Transport, asyncio.TimerHandle]) -> None:
        self._inner, self._ending, self._closed = inner, ending, False
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """See ``asyncio.Transport``; headers and body go out as one record of TLS and one call of the system."""
        if not self._held:
            asyncio.get_running_loop().call_soon(self._flush)
        self._held.append(data)

    def let_go(self) -> None:
        """The connection is no more. TLS and protocol know each other by it, and both hold buffers until a collector
        of circles comes by."""
        self._inner = _GONE

    def _flush(self) -> None:
        held, self._held = self._held, []
        small = sum(map(len, held)) < JOINED_BYTES
        for part in [b"".join(held)] if small else held:
            if part and not self._inner.is_closing():
                self._inner.write(part)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def is_closing(self) -> bool:
        """See ``asyncio.Transport``."""
        return self._closed or self._inner.is_closing()

    def close(self) -> None:
        """See ``asyncio.Transport``; what was written is on its way."""
        if not self.is_closing():
            self._flush()
            self._closed = True
            self._inner.pause_reading()
            loop = asyncio.get_running_loop()
            self._ending[self._inner] = loop.call_later(LINGER_S, self._end, self._inner)
            while len(self._ending) > LINGERING:
                self._end(next(iter(self._ending)))

    def _end(self, transport: asyncio.Transport) -> None:
        timer = self._ending.pop(transport, None)
        if timer is not None:
            timer.cancel()
            transport.abort()

    def resume_reading(self) -> None:
        """See ``asyncio.Transport``; not after ``close``."""
        if not self.is_closing():
            self._inner.resume_reading()


class _Gone(asyncio.Transport):
    """Of a connection that was lost."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        """See ``asyncio.BaseTransport``."""
        return default

    def is_closing(self) -> bool:
        """See ``asyncio.BaseTransport``."""
        return True

    def _nothing(self, *_: object) -> None:
        """There is nothing to do it to."""

    write = close = abort = pause_reading = resume_reading = _nothing  # type: ignore[assignment]


_GONE = _Gone()
