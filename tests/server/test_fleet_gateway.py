"""The gateway: what gets through to Flower, and what is refused before a byte of a body is read."""

import asyncio
import socket
import threading
import time
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedpeft.flower.fleet_client import HOLD_HEADER
from fedpeft.flower.handlers import ROUTES, Answer
from fedpeft.ids import NodeId
from fedpeft.testing.clock import FakeClock
from fedpeft_server.enrolment.active_devices import Standing
from fedpeft_server.service.fleet_gateway import LARGE_BYTES, FleetGateway, GatewayLimits
from fedpeft_server.service.held_pulls import LONGEST_S, HeldPulls
from fedpeft_server.service.listener import Listener, take_port
from fedpeft_server.service.prometheus import Meters
from fedpeft_server.service.request_body import BodyPace

KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PULL = "/v1/fleet/pull-messages"


@dataclass
class Fixture:
    """A gateway before an application that remembers what it got."""

    limits: GatewayLimits = field(default_factory=lambda: GatewayLimits(device_told_after_s=0.0))
    standing: Standing | None = field(default_factory=lambda: Standing(device="ward-a"))
    held: HeldPulls | None = None

    def __post_init__(self) -> None:
        self.clock, self.meters = FakeClock(), Meters()
        self.clock.advance(1000.0)
        self.passed: list[tuple[str, bytes]] = []
        self.gateway = FleetGateway(
            self._inner,
            lambda key: self.standing,
            clock=self.clock,
            meters=self.meters,
            limits=self.limits,
            held=self.held,
        )
        self.read = 0

    def _inner(self, route: str, key: bytes, body: bytes) -> Answer:
        self.passed.append((route, body))
        return Answer(status=200, kind=b"x", body=b"ok")

    def signed(self, *, offset_s: float = 0.0, at: str | None = None, key: ec.EllipticCurvePrivateKey = KEY) -> dict:
        self.clock.advance(0.001)
        stamp = at or (self.clock.utc() + timedelta(seconds=offset_s)).isoformat()
        signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            b"flwr-public-key": b64encode(PUBLIC),
            b"flwr-timestamp": stamp.encode(),
            b"flwr-signature": b64encode(signature),
        }

    def send(self, headers: dict, *, path: str = PULL, body: bytes = b"hello", method: str = "POST", **more) -> dict:
        """The response's status, headers and text."""
        headers = {b"content-length": str(len(body)).encode(), **headers}
        headers |= {key.encode(): value for key, value in more.items()}
        scope = {"type": "http", "path": path, "method": method, "client": ("10.0.0.7", 1)}
        scope["headers"] = [(key, value) for key, value in headers.items() if value is not None]
        parts: list[dict] = []

        async def receive() -> dict:
            self.read += 1
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict) -> None:
            parts.append(message)

        asyncio.run(self.gateway(scope, receive, send))
        start, end = parts
        return {"status": start["status"], "headers": dict(start["headers"]), "text": end["body"].decode()}


def test_a_signed_request_of_an_enrolled_device_reaches_flower_with_its_body() -> None:
    fixture = Fixture()
    answer = fixture.send(fixture.signed())
    assert (answer["status"], answer["text"]) == (200, "ok")
    assert fixture.passed == [(PULL, b"hello")]
    assert answer["headers"][b"x-content-type-options"] == b"nosniff"
    assert answer["headers"][b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/docs",
        "/",
        "/v1/fleet/pull-messages/../register-node",
    ],
)
def test_no_other_route_exists(path: str) -> None:
    fixture = Fixture()
    assert fixture.send(fixture.signed(), path=path)["status"] == 404
    assert fixture.passed == []
    assert fixture.read == 0


def test_the_routes_are_flowers_own() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    assert {("POST", route): kind for route, kind in ROUTES.items()}.items() <= PROTOBUF_REQUEST_TYPES.items()


def test_a_repeated_header_is_refused_because_every_retry_is_freshly_signed() -> None:
    fixture = Fixture()
    headers = fixture.signed()
    assert fixture.send(headers)["status"] == 200
    replayed = fixture.send(headers, path="/v1/fleet/push-object")
    assert replayed["status"] == 401
    assert len(fixture.passed) == 1
    assert fixture.send(fixture.signed())["status"] == 200


def test_what_was_signed_before_this_process_began_is_not_taken() -> None:
    fixture = Fixture()
    assert fixture.send(fixture.signed(offset_s=-6.0))["status"] == 401


@pytest.mark.parametrize(("offset_s", "status"), [(4.0, 200), (30.0, 401), (86400.0, 401), (-86400.0, 401)])
def test_a_clock_that_is_off_is_told_by_how_much(offset_s: float, status: int) -> None:
    fixture = Fixture()
    answer = fixture.send(fixture.signed(offset_s=offset_s))
    assert answer["status"] == status
    if status == 401:
        assert answer["headers"][b"fedpeft-refusal"] == b"clock"
        assert f"{offset_s:+.1f} s" in answer["text"]


def test_a_revoked_device_is_told_why_and_nothing_of_it_is_read() -> None:
    fixture = Fixture(standing=Standing(device="ward-a", revoked="ward-a was revoked: stolen"))
    answer = fixture.send(fixture.signed())
    assert (answer["status"], answer["text"]) == (403, "ward-a was revoked: stolen")
    assert answer["headers"][b"fedpeft-refusal"] == b"revoked"
    assert fixture.read == 0


def test_a_revocation_holds_from_the_next_request_on() -> None:
    fixture = Fixture()
    assert fixture.send(fixture.signed())["status"] == 200
    fixture.standing = Standing(device="ward-a", revoked="lost")
    assert fixture.send(fixture.signed())["status"] == 403


def test_strangers_and_false_signatures_are_refused_unread() -> None:
    fixture = Fixture()
    other = ec.generate_private_key(ec.SECP256R1())
    assert fixture.send(fixture.signed(key=other))["status"] == 401
    assert fixture.send({})["status"] == 401
    assert fixture.send(fixture.signed() | {b"flwr-signature": b"not base64!"})["status"] == 401
    assert fixture.send(fixture.signed(at="yesterday"))["status"] == 401
    assert fixture.send(fixture.signed(at="2026-11-22T12:16:40"))["status"] == 401, "a time without a zone"
    fixture.standing = None
    assert fixture.send(fixture.signed())["status"] == 401
    assert fixture.read == 0
    assert fixture.passed == []


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    fixture = Fixture(limits=GatewayLimits(body_bytes=10))
    assert fixture.send(fixture.signed(), body=b"x" * 11)["status"] == 413
    assert fixture.send(fixture.signed(), **{"content-length": b"nine"})["status"] == 411
    assert fixture.send(fixture.signed(), **{"transfer-encoding": b"chunked"})["status"] == 411
    assert fixture.read == 0
    assert fixture.send(fixture.signed(), body=b"x" * 10)["status"] == 200


def test_an_address_with_too_many_refused_requests_is_told_so_and_its_devices_go_on() -> None:
    fixture = Fixture(limits=GatewayLimits(stranger_burst=3))
    assert [fixture.send({})["status"] for _ in range(5)] == [401, 401, 401, 429, 429]
    assert fixture.send(fixture.signed())["status"] == 200
    assert fixture.send({}, path="/docs")["status"] == 429


def test_a_forged_signature_for_a_known_key_uses_up_the_strangers_budget_not_the_devices() -> None:
    fixture = Fixture(
        limits=GatewayLimits(stranger_burst=2, device_burst=3, device_per_s=0.001, device_told_after_s=0.0)
    )
    forged = [fixture.signed() | {b"flwr-signature": b"AAAA"} for _ in range(4)]
    assert [fixture.send(one)["status"] for one in forged] == [401, 401, 429, 429]
    assert [fixture.send(fixture.signed())["status"] for _ in range(4)] == [200, 200, 200, 429]


def test_a_device_with_a_wrong_clock_hears_so_also_when_its_address_is_used_up() -> None:
    fixture = Fixture(limits=GatewayLimits(stranger_burst=1))
    fixture.send({})
    answer = fixture.send(fixture.signed(offset_s=30.0))
    assert (answer["status"], answer["headers"][b"fedpeft-refusal"]) == (401, b"clock")


def test_a_device_has_a_rate_of_its_own() -> None:
    fixture = Fixture(limits=GatewayLimits(device_burst=2, device_per_s=1.0, device_told_after_s=0.0))
    assert [fixture.send(fixture.signed())["status"] for _ in range(3)] == [200, 200, 429]
    fixture.standing = Standing(device="ward-b")
    assert fixture.send(fixture.signed())["status"] == 200


def test_a_size_of_thousands_of_digits_and_a_time_beyond_all_calendars_are_refusals() -> None:
    fixture = Fixture()
    assert fixture.send(fixture.signed(), **{"content-length": b"9" * 5000})["status"] == 413
    for at in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59"):
        assert fixture.send(fixture.signed(at=at))["status"] == 401


def test_a_device_that_asks_too_often_is_refused_before_its_timestamps_are_kept() -> None:
    fixture = Fixture(limits=GatewayLimits(device_burst=2, device_per_s=0.001, device_told_after_s=0.0))
    assert [fixture.send(fixture.signed())["status"] for _ in range(50)] == [200] * 2 + [429] * 48
    assert len(fixture.gateway._times._order) == 2


def test_few_of_a_devices_refusals_are_told_late_and_the_others_at_once() -> None:
    late_s = 0.4
    limits = GatewayLimits(device_requests=2, device_burst=1, device_per_s=0.001, device_told_after_s=late_s)
    fixture = Fixture(limits=limits)
    assert fixture.send(fixture.signed())["status"] == 200
    waited: list[float] = []

    async def nothing() -> dict:
        raise AssertionError("nothing of the body is read")

    async def ask() -> None:
        begun = time.monotonic()

        async def send(message: dict) -> None:
            if "status" in message:
                assert message["status"] == 429
                waited.append(time.monotonic() - begun)

        headers = {**fixture.signed(), b"content-length": b"5"}
        scope = {"type": "http", "path": PULL, "method": "POST", "client": None, "headers": list(headers.items())}
        await fixture.gateway(scope, nothing, send)

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(5)))
        await ask()

    asyncio.run(main())
    assert [one >= late_s for one in waited] == [False, False, False, True, True, True]


def test_timestamps_are_forgotten_once_they_cannot_be_taken_any_more_and_not_before() -> None:
    fixture = Fixture()
    early = fixture.signed(offset_s=4.9)
    assert fixture.send(early)["status"] == 200
    fixture.clock.advance(60.0)
    assert fixture.send(early)["status"] == 401, "still good, and was here"
    fixture.clock.advance(10.0)
    assert fixture.send(early)["status"] == 401, "too old"
    fixture.send(fixture.signed())
    assert len(fixture.gateway._times._order) == 1


@pytest.mark.parametrize(
    ("size", "statuses"), [(5, [408, 408, 429]), (LARGE_BYTES, [408, 429, 429])], ids=["small", "large"]
)
def test_a_device_has_few_requests_at_once_and_fewer_large_ones(size: int, statuses: list[int]) -> None:
    fixture = Fixture(limits=GatewayLimits(device_requests=2, pace=BodyPace(silence_s=0.05), device_told_after_s=0.0))
    answered: list[int] = []

    async def silent() -> dict:
        await asyncio.sleep(10)
        raise AssertionError

    async def send(message: dict) -> None:
        if "status" in message:
            answered.append(message["status"])

    async def ask() -> None:
        headers = {**fixture.signed(), b"content-length": str(size).encode()}
        scope = {"type": "http", "path": PULL, "method": "POST", "client": None, "headers": list(headers.items())}
        await fixture.gateway(scope, silent, send)

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(3)))

    asyncio.run(main())
    assert sorted(answered) == statuses
    assert fixture.send(fixture.signed())["status"] == 200, "their places are free again"


def test_a_body_that_does_not_come_is_not_waited_for_without_end() -> None:
    fixture = Fixture(limits=GatewayLimits(pace=BodyPace(silence_s=0.02)))
    headers = {**fixture.signed(), b"content-length": b"5"}
    scope = {"type": "http", "path": PULL, "method": "POST", "client": None, "headers": list(headers.items())}
    parts: list[dict] = []

    async def silent() -> dict:
        await asyncio.sleep(10)
        raise AssertionError

    async def send(message: dict) -> None:
        parts.append(message)

    asyncio.run(fixture.gateway(scope, silent, send))
    assert parts[0]["status"] == 408
    assert fixture.passed == []


def test_a_pull_of_a_device_that_has_gone_is_not_answered_and_swallows_no_wake_up() -> None:
    asked = threading.Event()

    def is_due(node: NodeId) -> bool:
        asked.set()
        return False

    held = HeldPulls(is_due)
    fixture = Fixture(held=held)
    taken = take_port("127.0.0.1", 0, "test")
    listener = Listener(fixture.gateway, taken)
    listener.start()
    try:
        with socket.create_connection(taken.getsockname(), timeout=5.0) as line:
            headers = {b"host": b"h", b"content-length": b"5", HOLD_HEADER: b"5", **fixture.signed()}
            head = b"".join(b"%b: %b\r\n" % header for header in headers.items())
            line.sendall(b"POST %b HTTP/1.1\r\n%b\r\nhello" % (PULL.encode(), head))
            assert asked.wait(5.0)
        until = time.monotonic() + LONGEST_S - 2.0  # to ring would end the wait too
        while held._held and time.monotonic() < until:
            time.sleep(0.005)
        assert not held.ring(NodeId(0)), "somebody is said to hold a pull whose connection is closed"
    finally:
        listener.stop()
    assert fixture.passed == []


def test_what_was_refused_is_counted_by_its_status() -> None:
    fixture = Fixture()
    fixture.send({})
    fixture.send({}, path="/docs")
    text = fixture.meters.text()
    assert 'fedpeft_gate_refused_total{status="401"} 1' in text
    assert 'fedpeft_gate_refused_total{status="404"} 1' in text
