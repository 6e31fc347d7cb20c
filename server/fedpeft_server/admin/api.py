"""The API as an ASGI application: who asks, then what, then the body; and the page that uses it.

Nothing is read of a request's body before its caller is known and may do what it asks. Without a caller there are the
page's files, the OpenAPI document and signing in. Blocking work is on threads, few at once.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from fedpeft import bounded_json
from fedpeft.errors import FedpeftError
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.answers import answer_of, refused
from fedpeft_server.admin.asked import Asked, Value, checked
from fedpeft_server.admin.callers import Caller, Callers
from fedpeft_server.admin.http import BODY_BYTES, Answer, Refusal, header, read_body, send
from fedpeft_server.admin.openapi import document
from fedpeft_server.admin.routes import OPERATIONS, Operation, named
from fedpeft_server.admin.streams import (
    BODIES,
    BODIES_OF_A_TOKEN,
    STREAMS,
    STREAMS_OF_A_TOKEN,
    Places,
    Watch,
)
from fedpeft_server.enrolment.audit_log import AuditEvent
from fedpeft_server.rate_limit import RateLimit
from fedpeft_server.service.http_connection import connection_of
from fedpeft_server.service.prometheus import Meters

__all__ = ["AdminApi"]

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
AT_ONCE = 4
SIGN_IN_BYTES = 4096
"""A stranger's body; a token has 107 characters."""
_BODY = bounded_json.JsonLimits(max_bytes=BODY_BYTES, max_depth=2)


class AdminApi:
    """ASGI application.

    Args:
        site: what it administers.
        meters: counts requests and refusals.
    """

    def __init__(self, site: Administered, meters: Meters) -> None:
        self._site, self._meters, self._callers = site, meters, Callers(site)
        self._recorded = RateLimit(per_s=1 / 60, burst=10, clock=site.clock)
        self._busy = asyncio.Semaphore(AT_ONCE)
        self._places = Places(of_one=STREAMS_OF_A_TOKEN, total=STREAMS, what="open streams and downloads")
        self._bodies = Places(of_one=BODIES_OF_A_TOKEN, total=BODIES, what="requests that are being sent")
        self._watch = Watch(lambda: named("status").does(site, Asked()), site.clock)
        self._document = Answer(body=json.dumps(document()).encode())
        self._files = {path: _file(PAGE / name) for path, name in FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, reply: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
            if answer.streamed_to:
                with self._places.one(answer.streamed_to):
                    await send(answer, receive, reply)
            else:
                await send(answer, receive, reply)
        except Refusal as refusal:
            self._meters.count("admin_refused_total", status=str(refusal.status))
            # What is left of a body is not read: the connection ends.
            headers = {"connection": "close", **refusal.headers}
            with suppress(TimeoutError):
                await send(refused(refusal.status, refusal.text, headers), receive, reply)
        except TimeoutError:  # a reader that takes nothing: the connection ends with the answer cut off
            self._meters.count("admin_refused_total", status="slow")

    def close(self) -> None:
        """The port is about to close: streams end within a second. From any thread."""
        self._watch.close()
        self._callers.close()

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path, method = scope["path"], scope["method"]
        match method, path:
            case "GET", "/" | "/page.js" | "/page.css" | "/icon.svg":
                return self._files[path]
            case "GET", "/openapi.json":
                return self._document
            case "POST", "/v1/session":
                body = await read_body(scope, receive, most=SIGN_IN_BYTES)
                text = _object(body, scope).get("token")
                caller, cookie = await self._callers.sign_in(scope, text if isinstance(text, str) else "")
                return Answer(status=201, body=_told(caller), headers={"set-cookie": cookie})
            case "GET", "/v1/session" if self._callers.is_nobody(scope):
                return Answer(body=b'{"name": null}')
        caller = await self._callers.caller(scope)
        if (connection := connection_of(scope)) is not None:
            connection.belongs_to(caller.token.token_id)
        match method, path:
            case "GET", "/v1/session":
                return Answer(body=_told(caller))
            case "DELETE", "/v1/session":
                return Answer(body=b"{}", headers={"set-cookie": self._callers.sign_out(scope)})
            case "GET", "/v1/events":
                events = self._watch.events(lambda: self._callers.is_good(scope, caller))
                return Answer(kind="text/event-stream", events=events, streamed_to=caller.token.token_id)
        operation, parts = _operation(method, path)
        await self._expect_role(operation, caller)
        with self._bodies.one(caller.token.token_id) if operation.method == "POST" else nullcontext():
            values = await _values(operation, parts, scope, receive)
        return await self._done(
            operation, Asked(values=values, by=caller.by, role=caller.token.role, afar=True), caller
        )

    async def _done(self, operation: Operation, asked: Asked, caller: Caller) -> Answer:
        async with self._busy:
            answer = await asyncio.to_thread(answer_of, operation, self._site, asked)
        self._meters.count("admin_requests_total", operation=operation.name, status=str(answer.status))
        if answer.status >= 400 and operation.method == "POST":
            await self._record(caller, operation, f"answered {answer.status}")
        return answer if answer.download is None else replace(answer, streamed_to=caller.token.token_id)

    async def _expect_role(self, operation: Operation, caller: Caller) -> None:
        if operation.role is not None and caller.token.role >= operation.role:
            return
        await self._record(caller, operation, f"role {caller.token.role.word}")
        wanted = f"the role {operation.role.word}" if operation.role else "this on the coordinator's own machine"
        raise Refusal(403, f"Expected {wanted}, found {caller.token.role.word}.")

    async def _record(self, caller: Caller, operation: Operation, why: str) -> None:
        """An attempt that came to nothing, in the audit log; of each token only so many."""
        token_id = caller.token.token_id
        if self._recorded.allows(token_id):
            event, detail = AuditEvent.ACCESS_REFUSED, {"operation": operation.name, "why": why}
            await asyncio.to_thread(self._site.audit.append, event, actor=caller.by, subject=token_id, detail=detail)


async def _values(
    operation: Operation, parts: Mapping[str, str], scope: Scope, receive: Receive
) -> Mapping[str, Value]:
    """What an operation is given, from the path and from the query or the body."""
    is_read = operation.method == "GET"
    given = _query(scope, operation) if is_read else _object(await read_body(scope, receive), scope)
    try:
        return {**checked(operation.fields, given), **parts}
    except FedpeftError as error:
        raise Refusal(422, str(error)) from error


def _told(caller: Caller) -> bytes:
    """Who one is, for the page."""
    token, session = caller.token, caller.session
    told = {"name": token.name, "role": token.role.word, "ends_utc": token.expires_utc}
    return json.dumps({**told, "check": session.check if session else None}).encode()


def _operation(method: str, path: str) -> tuple[Operation, Mapping[str, str]]:
    found = [(one, parts) for one in OPERATIONS if (parts := one.match(path)) is not None]
    for operation, parts in found:
        if operation.method == method:
            return operation, parts
    if found:
        raise Refusal(
            405,
            "Expected a method that /openapi.json lists for this path.",
            {"allow": ", ".join(one.method for one, _ in found)},
        )
    raise Refusal(404, "Expected a path that /openapi.json lists.")


def _query(scope: Scope, operation: Operation) -> dict[str, object]:
    try:
        text = scope["query_string"].decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=16) if text else []
    except (UnicodeDecodeError, ValueError) as error:
        raise Refusal(400, "Expected a query of the form name=value.") from error
    if len({name for name, _ in pairs}) < len(pairs):
        raise Refusal(400, "Expected each name of the query once.")
    whole = {name for name, one in operation.fields.items() if one.kind == "integer"}
    return {name: int(text) if name in whole and _is_whole(text) else text for name, text in pairs}


def _object(body: bytes, scope: Scope) -> dict[str, object]:
    kind = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if body and kind != b"application/json":
        raise Refusal(415, "Expected a body of type application/json.")
    try:
        found = bounded_json.loads(body or b"{}", _BODY)
    except ValueError as error:
        raise Refusal(400, f"Expected JSON, found {error}.") from error
    if not isinstance(found, dict):
        raise Refusal(422, "Expected a JSON object.")
    return dict(found)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16


def _file(path: Path) -> Answer:
    return Answer(kind=f"{KINDS[path.suffix]}; charset=utf-8", body=path.read_bytes())
