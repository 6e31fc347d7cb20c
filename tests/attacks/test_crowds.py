"""One address that opens connections as fast as it can, and a device at another whose network takes its time.

Each listener keeps few connections that have not shown whose they are. While the oldest of all went, two thousand new
ones a second left a handshake some 30 ms, and a device over a network never came through.
"""

import multiprocessing
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from federation import ToyFederation
from strangers import CLIENT_HELLO_BEGUN, H2_PREFACE, many_descriptors

from fedpeft.deployment.client_hello import ENROL_NAME

pytestmark = pytest.mark.e2e

WAY_S = 0.15
"""From the device to the coordinator, each time that it says something."""
PORTS = ("fleet_port", "service_port", "enrol_port")


def storm(port: int, said: bytes) -> None:
    """Opens connections from 127.0.0.1 for ever; the last thousand stay open."""
    many_descriptors()
    open_ones: deque[socket.socket] = deque()
    while True:
        with suppress(OSError):
            one = socket.create_connection(("127.0.0.1", port), 1.0)
            open_ones.append(one)
            one.sendall(said)
        while len(open_ones) > 1000:
            open_ones.popleft().close()


@contextmanager
def storming(port: int, said: bytes) -> Iterator[None]:
    """A storm, in a process of its own; it has begun."""
    process = multiprocessing.get_context("spawn").Process(target=storm, args=(port, said), daemon=True)
    process.start()
    try:
        time.sleep(2.0)
        yield
    finally:
        process.kill()
        process.join()


def far_request(port: int, trust: ssl.SSLContext, said: bytes, name: str = "localhost") -> bytes:
    """What is answered to a device at 127.0.0.2 from which everything takes ``WAY_S``.

    Raises:
        OSError: the connection was ended.
    """
    arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trust.wrap_bio(arrived, leaving, server_hostname=name)
    with socket.create_connection(("127.0.0.1", port), 5.0, source_address=("127.0.0.2", 0)) as one:

        def until(done: Callable[[], bytes | None]) -> bytes:
            while True:
                try:
                    found = done()
                except ssl.SSLWantReadError:
                    found = b""
                if leaving.pending:
                    time.sleep(WAY_S)
                    one.sendall(leaving.read())
                if found is None or found:
                    return found or b""
                if not (more := one.recv(65536)):
                    raise ConnectionResetError("it was ended")
                arrived.write(more)

        until(tls.do_handshake)
        until(lambda: None if tls.write(said) else b"")
        return until(lambda: tls.read(65536))


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO_BEGUN], ids=["silent", "handshake begun"])
@pytest.mark.parametrize("port", PORTS)
def test_one_address_that_opens_connections_without_end_ends_no_handshake_of_another(
    federation: ToyFederation, port: str, said: bytes, device: tuple[Path, Path]
) -> None:
    trust = ssl.create_default_context(cafile=str(federation.home.ca_certificate))
    request, public = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", getattr(federation.settings, port)
    if port != "fleet_port":
        trust.set_alpn_protocols(["h2"])
        request = H2_PREFACE
    if port == "service_port":
        trust.load_cert_chain(*device)
    is_told_by_name = federation.settings.one_port and port == "enrol_port"
    name = ENROL_NAME if is_told_by_name else "localhost"
    with storming(public, said):
        answers = [far_request(public, trust, request, name) for _ in range(3)]
    assert all(answers)


@pytest.fixture(scope="module")
def device(federation: ToyFederation) -> tuple[Path, Path]:
    """Certificate and key of an enrolled device."""
    home = federation.enrol("far-away")
    return home.device_certificate, home.device_key
