"""One request to the API and its answer: a body within limits or a refusal, an answer that a slow reader cannot hold.

The limits of connections and headers are the listener's (``fedpeft_server.service.listener``); these are of what comes
after the headers. Every answer has the headers that keep a browser from doing more with it than it should.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from starlette.types import Receive, Scope, Send

from fedpeft_server.admin.asked import Download

__all__ = ["BODY_BYTES", "SEND_S", "Answer", "Refusal", "header", "read_body", "send"]

BODY_BYTES = 1 << 20
"""A run.toml of ``routes.CONFIG_CHARACTERS`` fits as JSON."""
BODY_S = 10.0
"""For a whole body to arrive."""
SEND_S = 20.0
"""For one piece of an answer to be taken."""
PIECE = 1 << 18
_HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
}


class Refusal(Exception):
    """What to answer instead.

    Args:
        status: of HTTP.
        text: why, for the caller.
        headers: further ones.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back.

    Args:
        status: of HTTP.
        kind: content type.
        body: all of it, unless there is a ``download`` or ``events``.
        download: sent as an attachment, and closed.
        events: sent as they come.
        streamed_to: the token that takes a place for as long as this is sent; empty: it takes none.
        headers: further ones.
    """

    status: int = 200
    kind: str = "application/json"
    body: bytes = b""
    download: Download | None = None
    events: AsyncIterator[bytes] | None = None
    streamed_to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header's value; None if it is not there.

    Raises:
        Refusal: it is there twice: two of a kind are two meanings.
    """
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise Refusal(400, f"Expected {name.decode()} once, found it {len(found)} times.")
    return bytes(found[0]) if found else None


async def read_body(scope: Scope, receive: Receive, *, most: int = BODY_BYTES) -> bytes:
    """The body of a request that says how long it is.

    Args:
        scope, receive: the request.
        most: bytes.

    Raises:
        Refusal: of no stated or excessive length, or it did not come in time.
    """
    if header(scope, b"transfer-encoding") is not None:
        raise Refusal(411, "Expected a body of stated length.")
    stated = header(scope, b"content-length") or b"0"
    if not stated.isdigit() or len(stated) > 12:
        raise Refusal(400, "Expected a content-length.")
    size = int(stated)
    if size > most:
        raise Refusal(413, f"Expected at most {most} bytes.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while len(body) < size:
                part = await receive()
                if part["type"] == "http.disconnect":
                    raise Refusal(400, "Expected the whole body.")
                body += part.get("body", b"")
    except TimeoutError as error:
        raise Refusal(408, f"Expected the whole body within {BODY_S:.0f} s.") from error
    return bytes(body)


async def send(answer: Answer, receive: Receive, reply: Send) -> None:
    """Sends an answer; a long one ends soon after its reader has gone, which uvicorn tells by ``receive`` alone.

    Raises:
        TimeoutError: the other side does not take it.
    """
    if answer.download is None and answer.events is None:
        await _begin(answer, reply, {"content-length": str(len(answer.body))})
        await _piece(reply, answer.body, more=False)
        return
    gone = asyncio.create_task(_gone(receive))
    try:
        if answer.download is not None:
            await _send_file(answer, answer.download, reply, gone)
        elif answer.events is not None:
            await _begin(answer, reply, {})
            async for event in answer.events:
                if gone.done():
                    return
                await _piece(reply, event, more=True)
            await _piece(reply, b"", more=False)
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    """Returns once the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_file(answer: Answer, download: Download, reply: Send, gone: asyncio.Task[None]) -> None:
    file = download.open()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        safe = "".join(one if one.isalnum() or one in "._-" else "_" for one in download.name)
        more = {"content-length": str(size), "content-disposition": f'attachment; filename="{safe}"'}
        await _begin(answer, reply, more)
        while size > 0 and not gone.done():
            piece = await asyncio.to_thread(file.read, min(PIECE, size))
            if not piece:  # it became shorter: the length that was stated does not come, and the peer notices
                return
            size -= len(piece)
            await _piece(reply, piece, more=True)
        await _piece(reply, b"", more=False)
    finally:
        file.close()


async def _begin(answer: Answer, reply: Send, more: Mapping[str, str]) -> None:
    headers = {**_HEADERS, "content-type": answer.kind, **more, **answer.headers}
    encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await reply({"type": "http.response.start", "status": answer.status, "headers": encoded})


async def _piece(reply: Send, body: bytes, *, more: bool) -> None:
    async with asyncio.timeout(SEND_S):
        await reply({"type": "http.response.body", "body": body, "more_body": more})
