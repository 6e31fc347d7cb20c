"""The only public listener's application: lets enrolled devices through to Flower's Fleet routes, nobody else.

A request is judged by its line and headers, before a byte of its body is read: the route is on the list, the key is
enrolled and not revoked, the signed timestamp is fresh and was never seen before, the device has not used up its rate.
Flower itself reads a whole body of any size first and signs timestamps only (flwr 1.41), so what it
leaves open is closed here. An enrolled key is looked up first, so that no stranger behind the same address can use up
what a device may ask for; a stranger's request costs a look-up, and too many of them from one address are answered 429.
A device that does not do as it should costs little too: requests, bodies and connections of one device are few.
What gets through goes to Flower's handlers as bytes (docs/adr/0008).
"""

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.types import Receive, Scope, Send

from fedpeft.clock import Clock
from fedpeft.flower.fleet_client import HOLD_HEADER
from fedpeft.flower.handlers import ROUTES, Answer
from fedpeft.ids import NodeId
from fedpeft_server.enrolment.active_devices import Standing
from fedpeft_server.origins import site_of
from fedpeft_server.rate_limit import RateLimit
from fedpeft_server.service.device_requests import AtOnce, SignedTimes
from fedpeft_server.service.held_pulls import HeldPulls
from fedpeft_server.service.http_connection import LimitedProtocol, connection_of
from fedpeft_server.service.prometheus import Meters
from fedpeft_server.service.request_body import BodyPace, BodyRoom, read_body

__all__ = ["FleetGateway", "GatewayLimits", "Handle"]

Handle = Callable[[str, bytes, bytes], Answer]
"""Route, key, body -> answer: ``fedpeft.flower.handlers``."""
LARGE_BYTES = 256 * 1024
"""A body from here on is handled on a thread of its own, and few at once; smaller ones take less than a thread does."""

SIZE_DIGITS = 19

KEY_BYTES = 1024
"""A public key as it travels; a device's takes 240."""
EARLIEST, LATEST = timedelta(seconds=-60), timedelta(seconds=5)
"""How far a signed timestamp may be from ours."""

_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'",
    b"referrer-policy": b"no-referrer",
    b"strict-transport-security": b"max-age=31536000",
    b"x-content-type-options": b"nosniff",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """What one device and one stranger may ask for.

    Args:
        body_bytes: of one request; one of Flower's 5 MB chunks and its frame fit.
        pace: at which a body must arrive.
        device_per_s, device_burst: requests of one device; a round takes ten.
        device_requests, device_large: of one device at once: requests, and those with a large body. An agent has a pull
            and a heartbeat; the others are of connections that broke and were not yet heard of.
        device_told_after_s: before a device hears that it asks too often; as many as ``device_requests`` wait so.
        stranger_per_s, stranger_burst: refused requests of one address, or IPv6 site; beyond that the answer is 429.
            No limit of enrolled devices: they may share the address.
        large_bytes: of bodies of ``LARGE_BYTES`` and more in memory at once; others wait.
    """

    body_bytes: int = 6 * 2**20
    pace: BodyPace = field(default_factory=BodyPace)
    device_per_s: float = 100.0
    device_burst: int = 400
    device_requests: int = 4
    device_large: int = 1
    device_told_after_s: float = 1.0
    stranger_per_s: float = 10.0
    stranger_burst: int = 50
    large_bytes: int = 64 * 2**20


@dataclass(slots=True)
class _Refused(Exception):
    """What to answer instead."""

    status: int
    text: str
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    often: str = ""
    """Whom it tells that they ask too often: an enrolled device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A request that may be read.

    Args:
        key: who signed it.
        device: whose key that is.
        size: of the body.
        hold_s: for a message that may come, before it is answered.
    """

    key: bytes
    device: str
    size: int
    hold_s: float


class FleetGateway:
    """ASGI application.

    Args:
        handle: Flower's handlers.
        standing: what enrolment knows of a public key (PEM, as the device sends it); None for a stranger's.
        clock: for timestamps and rates.
        meters: counts what was let through and what was not.
        node_of: key -> node, for pulls that wait.
        held: those pulls; None: none waits.
    """

    def __init__(
        self,
        handle: Handle,
        standing: Callable[[bytes], Standing | None],
        *,
        clock: Clock,
        meters: Meters,
        limits: GatewayLimits | None = None,
        node_of: Callable[[bytes], NodeId] = lambda key: NodeId(0),
        held: HeldPulls | None = None,
    ) -> None:
        self._handle, self._standing, self._clock, self._meters = handle, standing, clock, meters
        self._limits = allowed = limits or GatewayLimits()
        self._node_of, self._held = node_of, held
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}
        self._times = SignedTimes(clock, (LATEST - EARLIEST).total_seconds() + 1.0)
        # What was signed for an earlier process of this coordinator is not known here, so it is not taken.
        self._since = clock.utc() + timedelta(seconds=-5)
        rate = RateLimit(per_s=allowed.device_per_s, burst=allowed.device_burst, clock=clock)
        self._devices = AtOnce(
            requests=allowed.device_requests,
            large=allowed.device_large,
            rate=rate,
            told_after_s=allowed.device_told_after_s,
        )
        self._strangers = RateLimit(per_s=allowed.stranger_per_s, burst=allowed.stranger_burst, clock=clock)
        self._room = BodyRoom(allowed.large_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        address = (scope.get("client") or ("unknown", 0))[0]
        try:
            judged = self._judge(scope, address)
            self._meters.count("gate_requests_total", route=scope["path"].rpartition("/")[2])
            answer = await self._answer(judged, scope, receive)
        except _Refused as refused:
            self._meters.count("gate_refused_total", status=str(refused.status))
            if refused.often:
                await self._devices.refused(refused.often)
            await _refuse(send, refused)
            return
        if answer is not None:
            await _send(send, answer, _HEADERS)

    async def _answer(self, judged: _Judged, scope: Scope, receive: Receive) -> Answer | None:
        """What Flower says; None when nobody listens any more."""
        connection, large = connection_of(scope), judged.size >= LARGE_BYTES
        if connection is not None:
            connection.belongs_to(judged.device)
        room = self._room.of(judged.size) if large else nullcontext()
        with self._devices.one(judged.device, large=large):
            async with room:
                try:
                    body = await read_body(receive, judged.size, self._limits.pace)
                except TimeoutError as error:
                    raise _Refused(408, "") from error
                if body is None:
                    return None
                if large:
                    return await asyncio.to_thread(self._handle, scope["path"], judged.key, body)
            if await self._is_waited_out(judged, connection):
                return self._handle(scope["path"], judged.key, body)
            return None

    async def _is_waited_out(self, judged: _Judged, connection: LimitedProtocol | None) -> bool:
        """After the time for which a pull is held; whether anybody still listens."""
        if self._held is None or not judged.hold_s:
            return True
        return await self._held.wait(self._node_of(judged.key), judged.hold_s, connection)

    def _judge(self, scope: Scope, address: str) -> _Judged:
        """Whose request it is, and what of it may be read."""
        try:
            if scope["path"] not in ROUTES or scope["method"] != "POST":
                raise _Refused(404, "")
            headers = _unique(scope["headers"])
            key, at, standing = self._authenticate(headers)
            size = self._size(headers)
        except _Refused as refused:
            known = b"fedpeft-refusal" in refused.headers  # an enrolled device that is told what to do
            if not self._strangers.allows(site_of(address)) and not known:
                raise _Refused(429, "too many refused requests", {b"retry-after": b"5"}) from refused
            raise
        if not self._devices.allows(standing.device, large=size >= LARGE_BYTES):
            raise _Refused(429, "too many requests", {b"retry-after": b"1"}, often=standing.device)
        if not self._times.is_first(key, at):  # every retry is freshly signed
            raise _Refused(401, "")
        hold_s = _hold_s(headers) if scope["path"].endswith("/pull-messages") else 0.0
        return _Judged(key=key, device=standing.device, size=size, hold_s=hold_s)

    def _authenticate(self, headers: Mapping[bytes, bytes]) -> tuple[bytes, datetime, Standing]:
        """Whose request it is and when it was signed, if everything about it is in order."""
        if len(headers.get(b"flwr-public-key", b"")) > KEY_BYTES:
            raise _Refused(401, "")
        try:
            public = b64decode(headers[b"flwr-public-key"], validate=True)
            signature = b64decode(headers[b"flwr-signature"], validate=True)
            signed = headers[b"flwr-timestamp"]
            at = datetime.fromisoformat(signed.decode("ascii"))
        except (KeyError, ValueError, OverflowError, binascii.Error) as error:
            raise _Refused(401, "") from error
        standing = self._standing(public)
        if standing is None:
            raise _Refused(401, "")
        if standing.revoked:
            raise _Refused(403, standing.revoked, {b"fedpeft-refusal": b"revoked"})
        self._verify(public, signature, signed)
        if at.tzinfo is None:
            raise _Refused(401, "")
        offset = at - self._clock.utc()
        if not EARLIEST < offset < LATEST or at < self._since:
            text = f"this device's clock is {offset.total_seconds():+.1f} s off; set it by NTP"
            raise _Refused(401, text, {b"fedpeft-refusal": b"clock"})
        return public, at, standing

    def _verify(self, public: bytes, signature: bytes, signed: bytes) -> None:
        try:
            if public not in self._keys:
                key = load_pem_public_key(public)
                if not isinstance(key, ec.EllipticCurvePublicKey):
                    raise _Refused(401, "")
                self._keys[public] = key
            self._keys[public].verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
            raise _Refused(401, "") from error

    def _size(self, headers: Mapping[bytes, bytes]) -> int:
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or b"transfer-encoding" in headers:
            raise _Refused(411, "")
        if len(length) > SIZE_DIGITS or int(length) > self._limits.body_bytes:
            raise _Refused(413, "")
        return int(length)


def _hold_s(headers: Mapping[bytes, bytes]) -> float:
    """For how long a pull may be held, as the device says; 0 where it says nothing that makes sense."""
    said = headers.get(HOLD_HEADER, b"")
    return float(said) if said.isdigit() and len(said) <= 2 else 0.0


def _unique(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Each header once: two of a kind are two meanings."""
    found = dict(headers)
    if len(found) != len(headers):
        raise _Refused(400, "")
    return found


async def _refuse(send: Send, refused: _Refused) -> None:
    answer = Answer(status=refused.status, kind=b"text/plain; charset=utf-8", body=refused.text.encode())
    await _send(send, answer, {**_HEADERS, b"connection": b"close", **refused.headers})


async def _send(send: Send, answer: Answer, headers: Mapping[bytes, bytes]) -> None:
    about = [(b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.body)), *headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": about})
    await send({"type": "http.response.body", "body": answer.body})
