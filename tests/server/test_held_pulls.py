"""Pulls that wait for a message: answered when there is one, after their time, and when the coordinator ends."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.ids import NodeId
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.held_pulls import LONGEST_S, HeldPulls
from fedpeft_server.service.http_connection import connection_of
from fedpeft_server.service.listener import Listener, take_port

WARD, OTHER = NodeId(1), NodeId(2)
SOON_S = LONGEST_S - 2.0
ASKED = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"


def test_a_pull_is_held_until_its_nodes_message_comes_from_another_thread() -> None:
    held = HeldPulls(lambda node: False)

    async def main() -> list[bool]:
        waiting = asyncio.create_task(held.wait(WARD, 5.0))
        await asyncio.sleep(0.01)
        rung: list[bool] = []
        thread = threading.Thread(target=lambda: rung.extend((held.ring(OTHER), held.ring(WARD))))
        thread.start()
        await asyncio.wait_for(waiting, 4.0)
        thread.join()
        return rung

    assert asyncio.run(main()) == [False, True]
    assert not held.ring(WARD), "nobody waits any more"


def test_a_message_that_was_there_before_is_not_waited_for() -> None:
    asyncio.run(asyncio.wait_for(HeldPulls(lambda node: node == WARD).wait(WARD, 5.0), 4.0))


def test_a_message_between_the_look_and_the_wait_is_not_missed() -> None:
    """Who sends makes it due, then rings: at whatever moment that is, the pull is answered."""
    held: HeldPulls

    def due(node: NodeId) -> bool:
        held.ring(node)  # the sender comes exactly here, after what was looked at was decided
        return False

    held = HeldPulls(due)
    asyncio.run(asyncio.wait_for(held.wait(WARD, 5.0), 4.0))


def test_a_pull_ends_after_its_time_and_none_is_held_by_a_coordinator_that_ends() -> None:
    held = HeldPulls(lambda node: False)

    async def main() -> None:
        await asyncio.wait_for(held.wait(WARD, 0.01), 4.0)
        waiting = asyncio.create_task(held.wait(WARD, 5.0))
        await asyncio.sleep(0)
        held.close()
        await asyncio.wait_for(waiting, 4.0)
        await asyncio.wait_for(held.wait(WARD, 5.0), 4.0)

    asyncio.run(main())
    assert not held._held


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    made = CoordinatorHome(tmp_path_factory.mktemp("home") / "coordinator")
    initialise(made, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    return made


class Pulled:
    """A listener each of whose requests is a pull of one node, and what became of the last one."""

    def __init__(self, home: CoordinatorHome, *, tls: bool) -> None:
        self.asked, self.ended, self.due = threading.Event(), threading.Event(), False
        self.listens: bool | None = None
        self.missed: list[NodeId] = []
        self.held = HeldPulls(self._is_due, missed=self.missed.append)
        taken = take_port("127.0.0.1", 0, "test")
        files: dict[str, Path] = {"certificate": home.server_certificate, "key": home.server_key} if tls else {}
        self.listener = Listener(self._app, taken, **files)
        self.listener.start()
        self.line: socket.socket = socket.create_connection(taken.getsockname(), timeout=5.0)
        if tls:
            trust = ssl.create_default_context(cafile=str(home.ca_certificate))
            self.line = trust.wrap_socket(self.line, server_hostname="localhost")
        self.line.sendall(ASKED)
        assert self.asked.wait(5.0)

    def _is_due(self, node: NodeId) -> bool:
        self.asked.set()
        return self.due

    async def _app(self, scope, receive, send) -> None:
        self.loop, self.connection = asyncio.get_running_loop(), connection_of(scope)
        self.listens = await self.held.wait(WARD, LONGEST_S, self.connection)
        self.ended.set()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def pulled(home: CoordinatorHome, *, tls: bool) -> Iterator[Pulled]:
    made = Pulled(home, tls=tls)
    try:
        yield made
    finally:
        made.line.close()
        made.listener.stop()


def reset(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def speak_again(line: socket.socket) -> None:
    """Before the answer, which ends a connection on the coordinator's side."""
    line.sendall(ASKED)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("lose", [socket.socket.close, reset, speak_again], ids=["closed", "reset", "cut"])
def test_a_pull_ends_with_its_connection_and_nobody_is_said_to_hold_it(
    home: CoordinatorHome, lose: Callable[[socket.socket], None], tls: bool
) -> None:
    """Else no wake-up is sent for a message that nobody fetches."""
    with pulled(home, tls=tls) as pull:
        lose(pull.line)
        assert pull.ended.wait(SOON_S)
        assert pull.listens is False
        assert not pull.held.ring(WARD)
        assert pull.missed == [], "no message waits"


def test_a_connection_that_is_open_hears_of_its_message(home: CoordinatorHome) -> None:
    with pulled(home, tls=True) as pull:
        assert pull.held.ring(WARD)
        assert pull.line.recv(1000).startswith(b"HTTP/1.1 200")
        assert pull.listens is True


def test_a_message_whose_pull_was_rung_and_is_lost_in_that_moment_is_told_of_as_missed(home: CoordinatorHome) -> None:
    """``ring`` said that somebody holds it, so no wake-up was sent."""
    with pulled(home, tls=False) as pull:
        rung: list[bool] = []

        def both() -> None:
            pull.due = True
            rung.append(pull.held.ring(WARD))
            pull.connection.cut()

        pull.loop.call_soon_threadsafe(both)
        assert pull.ended.wait(SOON_S)
        assert rung == [True]
        assert pull.listens is False
        assert pull.missed == [WARD]
