"""What a device takes from whoever answers at its coordinator's address: no more than an answer may be."""

import logging
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest, PullMessagesResponse

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.fleet_client import ANSWER_BYTES, HEAD_BYTES, FleetClient, FleetTarget, RequestRefused, Unanswered
from fedpeft_client.enrolment.keys import new_device_key
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    """With an authority and a server's certificate."""
    made = CoordinatorHome(tmp_path_factory.mktemp("home") / "coordinator")
    initialise(made, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    return made


@contextmanager
def client(home: CoordinatorHome, answer: Callable[[ssl.SSLSocket], None]) -> Iterator[tuple[FleetClient, list[int]]]:
    """A client whose coordinator does this on every connection, and the list of its connections."""
    trust, listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), socket.create_server(("127.0.0.1", 0))
    trust.load_cert_chain(home.server_certificate, home.server_key)
    connections: list[int] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            connections.append(1)
            with suppress(OSError), trust.wrap_socket(plain, server_side=True) as line:
                answer(line)

    threading.Thread(target=serve, daemon=True).start()
    address = f"localhost:{listening.getsockname()[1]}"
    made = FleetClient(
        FleetTarget(address=address, ca=Path(home.ca_certificate).read_bytes(), node_key=new_device_key())
    )
    try:
        yield made, connections
    finally:
        made.close()
        listening.close()


def pull(one: FleetClient) -> PullMessagesResponse:
    return one.ask(PullMessagesRequest(), PullMessagesResponse)


def says(*answers: bytes) -> Callable[[ssl.SSLSocket], None]:
    """A coordinator that answers each request of a connection with the next of these, then ends the connection."""

    def answer(line: ssl.SSLSocket) -> None:
        for one in answers:
            line.recv(2**16)
            line.sendall(one)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (ANSWER_BYTES + 1),
        b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xff\xff\xff",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<p>maintenance</p>",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0, 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n",
        b"HTTP/1.1 \xb200 OK\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"",
    ],
    ids=[
        "headers without end",
        "a body too long",
        "a body cut off",
        "no protobuf",
        "chunked",
        "chunked, with a length",
        "no length",
        "cut off after its headers",
        "two lengths",
        "a length twice",
        "a list of lengths",
        "a signed length",
        "no digit of ASCII",
        "no status",
        "another protocol",
        "nothing",
    ],
)
def test_an_answer_that_is_none_is_given_up(home: CoordinatorHome, answer: bytes) -> None:
    with client(home, says(answer)) as (one, _), pytest.raises(Unanswered):
        pull(one)


def test_a_coordinator_whose_answers_cannot_be_read_is_warned_of_once(
    home: CoordinatorHome, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first, as a lost connection would make; and not for ever in lines that nobody sees."""
    pauses: list[float] = []
    with client(home, says(b"HTTP/1.1 200 OK\r\n\r\n")) as (one, _):
        fleet = Fleet(lambda: one._target, ClientApp(), wait=lambda _: None, stopping=lambda: len(pauses) == 10)
        monkeypatch.setattr(fleet, "_sleep", pauses.append)
        with caplog.at_level(logging.INFO):
            fleet.serve()
        fleet.close()
    levels = [record.levelno for record in caplog.records if "coordinator" in record.message]
    assert levels.count(logging.WARNING) == 1
    assert levels.index(logging.WARNING) > 5
    (warned,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert one._target.address in warned
    assert "length" in warned


def test_a_connection_is_kept_and_opened_anew_when_its_end_was_seen(home: CoordinatorHome) -> None:
    with client(home, says(OK, OK)) as (one, connections):
        pull(one)
        pull(one)
        assert len(connections) == 1
        line, _ = one._idle[0]
        line.settimeout(5.0)
        with suppress(OSError):
            line.recv(1)  # the coordinator has ended it
        pull(one)
        assert len(connections) == 2


def test_bytes_behind_an_answer_are_not_taken_for_the_next(home: CoordinatorHome) -> None:
    """Whether they came with its last bytes or apart from them."""

    def answer(line: ssl.SSLSocket) -> None:
        line.recv(2**16)
        line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        line.sendall(b"\x08\x01" + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\x08\x9a\x05")
        line.recv(2**16)

    with client(home, answer) as (one, connections):
        found = [one.ask(ActivateNodeRequest(), ActivateNodeResponse).node_id for _ in range(2)]
    assert (found, len(connections)) == ([1, 1], 2)


def test_a_connection_is_kept_in_a_process_of_many_files(home: CoordinatorHome) -> None:
    """``select`` takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine allows no 2048 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while opened.enter_context(Path(os.devnull).open("rb")).fileno() < 1024:
            pass
        one, connections = opened.enter_context(client(home, says(OK, OK)))
        pull(one)
        assert one._idle[0][0].fileno() > 1023
        pull(one)
        assert len(connections) == 1


def test_a_refusal_brings_its_status_text_and_reason(home: CoordinatorHome) -> None:
    refusal = (
        b"HTTP/1.1 403 Forbidden\r\nFedpeft-Refusal: revoked\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngone"
    )
    with client(home, says(refusal)) as (one, _), pytest.raises(RequestRefused) as found:
        pull(one)
    assert (found.value.status, found.value.text, found.value.headers["fedpeft-refusal"]) == (403, "gone", "revoked")
    assert not one._idle


def test_another_authority_is_not_spoken_to(home: CoordinatorHome, tmp_path: Path) -> None:
    other = CoordinatorHome(tmp_path / "other")
    initialise(other, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    with client(home, says(OK)) as (one, _):
        target = FleetTarget(
            address=one._target.address, ca=other.ca_certificate.read_bytes(), node_key=new_device_key()
        )
        with pytest.raises(Unanswered, match="certificate"):
            pull(FleetClient(target))
