"""A TLS listener under connections that say nothing, too little or the wrong thing; real sockets."""

import socket
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.connection_limits import ConnectionTimeouts
from fedpeft_server.service.listener import Listener, take_port

IMPATIENT = ConnectionTimeouts(silence_s=0.3, handshake_s=0.3, silent=20, handshakes=5)
PATIENT = ConnectionTimeouts(silence_s=60.0, handshake_s=60.0, silent=20, handshakes=5)
BEGUN = b"\x16\x03\x01\x02\x00\x01"
"""The first bytes of a TLS handshake."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    made = CoordinatorHome(tmp_path_factory.mktemp("home") / "coordinator")
    initialise(made, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    return made


class Server:
    """One listener that answers 'ok'."""

    def __init__(self, home: CoordinatorHome, patience: ConnectionTimeouts, *, tls: bool = True) -> None:
        taken = take_port("127.0.0.1", 0, "test")
        self.port, self.home, self.tls = taken.getsockname()[1], home, tls
        files = {"certificate": home.server_certificate, "key": home.server_key} if tls else {}
        self.listener = Listener(self._app, taken, timeouts=patience, **files)
        self.listener.start()
        self.opened: list[socket.socket] = []

    async def _app(self, scope, receive, send) -> None:
        self.peer = scope["client"][0]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def get(self) -> str:
        trust = ssl.create_default_context(cafile=str(self.home.ca_certificate))
        scheme = "https" if self.tls else "http"
        return httpx.get(f"{scheme}://localhost:{self.port}/", verify=trust, timeout=5.0).text

    def connect(self, say: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=5.0)
        made.sendall(say)
        self.opened.append(made)
        return made

    def handshake(self) -> ssl.SSLSocket:
        trust = ssl.create_default_context(cafile=str(self.home.ca_certificate))
        made = trust.wrap_socket(self.connect(), server_hostname="localhost")
        self.opened.append(made)
        return made

    def close(self) -> None:
        for one in self.opened:
            one.close()
        self.listener.stop()


@pytest.fixture
def impatient(home: CoordinatorHome) -> Iterator[Server]:
    made = Server(home, IMPATIENT)
    yield made
    made.close()


@pytest.fixture
def patient(home: CoordinatorHome) -> Iterator[Server]:
    made = Server(home, PATIENT)
    yield made
    made.close()


def ended(one: socket.socket, *, within_s: float = 5.0) -> bool:
    """Whether the other side hangs up."""
    one.settimeout(within_s)
    try:
        while True:
            if not one.recv(4096):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("say", [b"", BEGUN[:1], BEGUN], ids=["nothing", "one byte", "half a handshake"])
def test_a_connection_that_does_not_finish_its_handshake_is_closed_in_time(impatient: Server, say: bytes) -> None:
    assert ended(impatient.connect(say))


def test_a_connection_that_asks_for_nothing_after_its_handshake_is_closed_in_time(impatient: Server) -> None:
    assert ended(impatient.handshake())


def test_whoever_asks_is_answered_and_kept(impatient: Server) -> None:
    trust = ssl.create_default_context(cafile=str(impatient.home.ca_certificate))
    with httpx.Client(verify=trust) as client:
        url = f"https://localhost:{impatient.port}/"
        assert client.get(url).text == "ok"
        stream = client._transport._pool.connections[0]  # type: ignore[attr-defined]
        threading.Event().wait(0.8)
        assert client.get(url).text == "ok"
        assert client._transport._pool.connections == [stream], "the same connection"  # type: ignore[attr-defined]


def test_nobody_chooses_the_address_that_they_are_judged_by(patient: Server) -> None:
    trust = ssl.create_default_context(cafile=str(patient.home.ca_certificate))
    httpx.get(f"https://localhost:{patient.port}/", verify=trust, headers={"X-Forwarded-For": "10.0.0.7"})
    assert patient.peer == "127.0.0.1"


def test_idle_sockets_are_bounded_and_the_oldest_goes_first(patient: Server) -> None:
    crowd = [patient.connect() for _ in range(PATIENT.silent + 5)]
    assert all(ended(one) for one in crowd[:5])
    assert not any(ended(one, within_s=0.02) for one in crowd[5:])
    assert patient.get() == "ok"


def test_stuck_handshakes_are_bounded_and_keep_nobody_out(patient: Server) -> None:
    crowd = [patient.connect(BEGUN) for _ in range(3 * PATIENT.handshakes)]
    assert patient.get() == "ok"
    assert sum(ended(one, within_s=0.5) for one in crowd) >= 2 * PATIENT.handshakes


def test_what_is_no_tls_is_hung_up_on(patient: Server) -> None:
    assert ended(patient.connect(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert patient.get() == "ok"


def test_without_tls_it_serves_plainly(home: CoordinatorHome) -> None:
    server = Server(home, IMPATIENT, tls=False)
    try:
        assert server.get() == "ok"
        assert ended(server.connect())
        assert ended(server.connect(b"GET"))
    finally:
        server.close()


def test_stopping_lets_go_of_everybody(home: CoordinatorHome) -> None:
    server = Server(home, PATIENT)
    held = [server.connect(), server.connect(BEGUN), server.handshake()]
    server.get()
    server.listener.stop()
    assert all(ended(one) for one in held)
    with pytest.raises(OSError, match=r".+"):
        server.connect()
    server.close()
