"""One port for all: a connection goes, unread, where its ClientHello says, and costs little until it has said it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from fedpeft.deployment.client_hello import ENROL_NAME, Way
from fedpeft_server.service.connection_limits import UNKNOWN_WINDOW, ConnectionTimeouts
from fedpeft_server.service.listener import take_port
from fedpeft_server.service.one_port import OnePort
from tests.deployment.test_client_hello import said

HELLOS = {
    Way.FLEET: said("fed.example.org", ("http/1.1",)),
    Way.SERVICE: said("fed.example.org", ("h2",)),
    Way.ENROL: said(ENROL_NAME, ("h2",)),
}
Taken = list[tuple[Way, socket.socket]]


@contextlib.asynccontextmanager
async def opened(timeouts: ConnectionTimeouts) -> AsyncIterator[tuple[Taken, int]]:
    """What was handed on, and the port."""
    listening, taken = take_port("127.0.0.1", 0, "test"), []
    ways = {way: lambda connection, way=way: taken.append((way, connection)) for way in Way}
    port = OnePort(listening, ways, timeouts)
    try:
        yield taken, listening.getsockname()[1]
    finally:
        await port.stop()
        for _, connection in taken:
            connection.close()


def run(body: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20.0))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("pieces", [1, 3])
def test_it_is_handed_on_unread_to_whom_it_asks_for(way: Way, pieces: int) -> None:
    async def body() -> None:
        async with opened(ConnectionTimeouts()) as (taken, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            hello = HELLOS[way]
            for start in range(0, len(hello), size := -(-len(hello) // pieces)):
                assert not taken
                writer.write(hello[start : start + size])
                await asyncio.sleep(0.05)
            await until(lambda: bool(taken))
            ((where, connection),) = taken
            assert where is way
            assert connection.recv(1 << 16) == hello
            assert connection.getpeername() == writer.get_extra_info("sockname")
            assert not connection.getblocking()
            window = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)
            assert (window <= UNKNOWN_WINDOW) is (way is Way.FLEET), "the gateway opens it once it knows whose it is"
            connection.sendall(b"answer")
            assert await reader.readexactly(6) == b"answer"
            writer.close()

    run(body)


@pytest.mark.parametrize("sent", [b"", HELLOS[Way.SERVICE][:100], b"\x16"], ids=["nothing", "half", "a-byte"])
def test_whoever_does_not_come_to_an_end_is_let_go_in_time(sent: bytes) -> None:
    async def body() -> None:
        async with opened(ConnectionTimeouts(silence_s=0.2, handshake_s=0.2)) as (taken, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert not taken
            writer.close()

    run(body)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00", b"\0" * 70_000])
def test_what_is_not_tls_ends_at_once(sent: bytes) -> None:
    async def body() -> None:
        async with opened(ConnectionTimeouts()) as (taken, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert not taken
            writer.close()

    run(body)


@pytest.mark.parametrize("begun", [b"", HELLOS[Way.SERVICE][:100]], ids=["nothing", "half"])
def test_of_too_many_the_oldest_goes_and_who_comes_last_is_heard(begun: bytes) -> None:
    async def body() -> None:
        async with opened(ConnectionTimeouts(silent=5, handshakes=5)) as (taken, port):
            crowd = []
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(begun)
                crowd.append((reader, writer))
                await asyncio.sleep(0.005)
            for reader, _ in crowd[:14]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            _, last = await asyncio.open_connection("127.0.0.1", port)
            last.write(HELLOS[Way.ENROL])
            await until(lambda: bool(taken))
            for _, writer in [*crowd, (None, last)]:
                writer.close()

    run(body)
