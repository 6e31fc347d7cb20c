"""A slow way to the coordinator: an upload ends when it stops, and not because it takes long."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.flower import fleet_client
from fedpeft.flower.fleet_client import FleetClient, FleetTarget, Unanswered
from fedpeft_client.enrolment.keys import new_device_key
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings

UPLOAD = PushObjectRequest(object_content=bytes(1_500_000))


@contextmanager
def slow_coordinator(folder: Path, *, pieces: int, pause_s: float, whole: bool) -> Iterator[FleetClient]:
    """Takes an upload in so many pieces with pauses between; then answers, or takes no more."""
    home = CoordinatorHome(folder / "coordinator")
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    trust, listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    trust.load_cert_chain(home.server_certificate, home.server_key)
    ended = threading.Event()

    def serve() -> None:
        plain, _ = listening.accept()
        with suppress(OSError), trust.wrap_socket(plain, server_side=True) as line:
            taken, size = 0, UPLOAD.ByteSize()
            while taken < size // (1 if whole else 2):
                taken += len(line.recv(size // pieces))
                time.sleep(pause_s * 16_384 / (size / pieces))  # a record of TLS is 16 KiB
            if whole:
                line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            ended.wait(20.0)

    threading.Thread(target=serve, daemon=True).start()
    address = f"localhost:{listening.getsockname()[1]}"
    client = FleetClient(FleetTarget(address=address, ca=home.ca_certificate.read_bytes(), node_key=new_device_key()))
    try:
        yield client
    finally:
        ended.set()
        client.close()
        listening.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can outlast."""
    monkeypatch.setattr(fleet_client, "REQUEST_S", 0.3)
    monkeypatch.setattr(fleet_client, "STALLED_S", 0.6)
    monkeypatch.setattr(fleet_client, "LEAST_PER_S", 512 * 1024.0)


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_comes_on_is_delivered_however_long_it_takes(tmp_path: Path) -> None:
    with slow_coordinator(tmp_path, pieces=20, pause_s=0.12, whole=True) as client:
        begun = time.monotonic()
        client.ask(UPLOAD, PushObjectResponse)
        assert time.monotonic() - begun > 1.0, "it took longer than any silence may"


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_stops_is_given_up(tmp_path: Path) -> None:
    with slow_coordinator(tmp_path, pieces=20, pause_s=0.01, whole=False) as client:
        begun = time.monotonic()
        with pytest.raises(Unanswered):
            client.ask(UPLOAD, PushObjectResponse)
        assert time.monotonic() - begun < 10.0
