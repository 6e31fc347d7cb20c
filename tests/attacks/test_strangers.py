"""A stranger costs a stranger: floods of refused requests take nothing from devices, the disk or the log.

Found by attackers: 17 refused requests a second stopped every device behind the same address;
each refused application was a synced audit record; each failed handshake a line of the gRPC core, 0.7 MB a second.
"""

import json
import socket
import ssl
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

import pytest
from federation import ToyFederation
from strangers import answer, tls

from fedpeft.clock import SystemClock
from fedpeft.deployment.client_hello import ENROL_NAME
from fedpeft.deployment.messages import Application, EnrolRequest, Refused
from fedpeft.errors import FedpeftError
from fedpeft.planner import REFERENCE
from fedpeft.wire import encode
from fedpeft_client.connection.grpc_client import Link
from fedpeft_server.enrolment.audit_log import AuditLog

pytestmark = pytest.mark.e2e
NAMES = ("ward-a", "ward-b", "ward-c")


class Flood:
    """Refused requests as fast as one thread can make them, over kept TLS sessions."""

    def __init__(self, federation: ToyFederation) -> None:
        self._port, self._ca = federation.settings.fleet_port, federation.home.ca_certificate
        self._done, self.sent = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._done.wait(0.02):
            try:
                with tls(self._port, self._ca) as one:
                    one.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                    one.recv(4096)
                self.sent += 1
            except OSError:
                pass


def application(federation: ToyFederation, number: int) -> EnrolRequest:
    """Well formed, for a token that does not exist."""
    made = Application(
        token_id=f"{number:08x}",
        ca_fingerprint=bytes(32),
        device="\N{PILE OF POO}" * 60,
        organisation="x",
        csr=b"",
        identity=bytes(32),
        identity_signature=bytes(64),
        profile=REFERENCE.to_json(),
    )
    return EnrolRequest(application=encode(made), proof=bytes(32))


def enrolment(federation: ToyFederation) -> Link:
    target = f"localhost:{federation.settings.enrol_port}"
    name = ENROL_NAME if federation.settings.one_port else ""
    return Link(target, authority=federation.home.ca_certificate.read_bytes(), name=name)


def flooded(federation: ToyFederation, count: int) -> list[Refused | FedpeftError]:
    """The answers to that many refused applications."""
    answers: list[Refused | FedpeftError] = []
    with enrolment(federation) as link:
        for number in range(count):
            try:
                answers.append(link.enrol(application(federation, number)))
            except FedpeftError as error:
                answers.append(error)
    return answers


def test_a_flood_from_the_devices_own_address_does_not_hold_up_a_round(federation: ToyFederation) -> None:
    federation.admit(NAMES)
    calm = federation.finished(federation.submit(rounds=3))
    with Flood(federation) as flood:
        end = time.monotonic() + 4.0
        while flood.sent < 80 and time.monotonic() < end:  # beyond the budget of the address
            time.sleep(0.05)
        job = federation.finished(federation.submit(rounds=3))
    assert job.state.value == "finished", job.reason
    assert flood.sent > 80

    def seconds(job) -> float:
        return median(row["seconds"] for row in federation.rows(job)[1:-1])

    assert seconds(job) < 3 * seconds(calm) + 0.5
    for name in NAMES:
        assert "429" not in federation.log(name)
    with urllib.request.urlopen(f"http://127.0.0.1:{federation.settings.metrics_port}/metrics", timeout=5) as metrics:
        assert 'gate_refused_total{status="429"}' in metrics.read().decode()


def test_refused_applications_write_nothing_and_keep_no_joining_device_out(federation: ToyFederation) -> None:
    before = federation.home.audit.stat().st_size
    answers = flooded(federation, 300)
    assert {type(one).__name__ for one in answers} == {"Refused", "Unreachable"}, "beyond 200 at once it is limited"
    assert federation.home.audit.stat().st_size == before
    federation.enrol("late-joiner")
    assert federation.audited()[-1] == "approved"


def test_who_was_refused_is_in_the_audit_log_when_the_coordinator_ends(tmp_path: Path) -> None:
    federation = ToyFederation(tmp_path, forked=True)
    try:
        coordinator = federation.up()
        flooded(federation, 5)
        coordinator.terminate()
        assert coordinator.wait(60) == 0
    finally:
        federation.close()
    (record,) = [
        one
        for one in AuditLog(federation.home.audit, SystemClock()).records()
        if one.event.value == "strangers-refused"
    ]
    assert record.detail["count"] == 5
    assert record.detail["addresses"] == 1


def test_failed_handshakes_and_malformed_requests_leave_no_line_and_every_line_is_json(
    federation: ToyFederation,
) -> None:
    before = len(federation.log("coordinator"))
    for port in (federation.settings.fleet_port, federation.settings.service_port, federation.settings.enrol_port):
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), 5.0) as one:
                one.sendall(b"GET / HTTP/1.1\r\n\r\n")
                answer(one, within_s=0.05)
    for _ in range(20):
        with tls(federation.settings.fleet_port, federation.home.ca_certificate) as one:
            one.sendall(b"\x00\x01nonsense\r\n\r\n")
            answer(one, within_s=0.05)
    untrusting = ssl.create_default_context()
    for _ in range(20):
        one = socket.create_connection(("localhost", federation.settings.service_port), 5.0)
        with one, pytest.raises(ssl.SSLError):
            untrusting.wrap_socket(one, server_hostname="localhost")
    time.sleep(0.5)
    log = federation.log("coordinator")
    assert log[before:] == ""
    for line in log.splitlines():
        assert json.loads(line)["level"]
