"""What comes to the ports of the gRPC service is counted before gRPC sees it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from fedpeft.deployment.client_hello import ClientHello, read_client_hello
from fedpeft_server.service import counted_relay
from fedpeft_server.service.counted_relay import CountedRelay, RelayLimits
from fedpeft_server.service.listener import take_port


class Behind:
    """What the relay hands connections to: answers each piece in capitals, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ports: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.ports.append(writer.get_extra_info("peername")[1])
        self.heard.append(b"")
        number = len(self.heard) - 1
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                self.heard[number] += piece
                writer.write(piece.upper())
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def relayed(limits: RelayLimits, bind: str = "127.0.0.1") -> AsyncIterator[tuple[Behind, CountedRelay, int]]:
    """A relay before something that answers; its port."""
    behind = Behind()
    inner = await asyncio.start_server(behind.serve, "127.0.0.1", 0)
    listening = take_port(bind, 0, "test")
    relay = CountedRelay(listening, inner.sockets[0].getsockname()[1], limits)
    await relay.start()
    try:
        yield behind, relay, listening.getsockname()[1]
    finally:
        await relay.stop()
        inner.close()


HELLO = b"\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03" + bytes(36)
"""The shortest ClientHello: nothing is opened before there is one."""


async def greeted(port: int, host: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has said its ClientHello and got its answer."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(HELLO)
    assert await reader.readexactly(len(HELLO)) == HELLO.upper()
    return reader, writer


def run(body: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20.0))  # type: ignore[arg-type]


def test_bytes_pass_both_ways_as_they_are_and_an_end_is_an_end() -> None:
    async def body() -> None:
        async with relayed(RelayLimits()) as (behind, relay, port):
            reader, writer = await greeted(port)
            sent = bytes(range(256)) * 200
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent.upper()
            assert relay.origin(behind.ports[0]) == "127.0.0.1"
            writer.write_eof()
            assert await reader.read() == b""
            assert behind.heard == [HELLO + sent]
            await asyncio.sleep(0.05)
            assert relay.origin(behind.ports[0]) == "", "forgotten with its connection"

    run(body)


@pytest.mark.parametrize("piece", [1, 1000, 100_000])
def test_no_more_than_the_budget_reaches_what_is_behind(piece: int) -> None:
    async def body() -> None:
        async with relayed(RelayLimits(sent_bytes=5000)) as (behind, _, port):
            reader, writer = await greeted(port)
            with contextlib.suppress(OSError):
                for _ in range(0, 20_000, piece):
                    writer.write(b"a" * piece)
                    await writer.drain()
                while await reader.read(65536):
                    pass
            await asyncio.sleep(0.1)
            assert sum(map(len, behind.heard)) <= 5000
            assert reader.at_eof() or reader.exception() is not None

    run(body)


@pytest.mark.parametrize("begun", [b"", HELLO[:-1], b"GET / HTTP/1.1\r\n"], ids=["nothing", "half", "no TLS"])
def test_who_says_no_whole_client_hello_opens_nothing_and_goes(begun: bytes) -> None:
    async def body() -> None:
        async with relayed(RelayLimits(silence_s=0.1)) as (behind, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5.0) == b""
            assert behind.heard == []

    run(body)


def test_a_client_hello_in_a_thousand_pieces_is_not_read_a_thousand_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of a byte each: read anew for every byte, they cost a core for seconds a connection."""
    reads = []

    def reading(records: bytes) -> ClientHello | None:
        reads.append(len(records))
        return read_client_hello(records)

    async def body() -> None:
        async with relayed(RelayLimits()) as (behind, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            message = HELLO[5:]
            split = b"".join(b"\x16\x03\x01\x00\x01" + message[at : at + 1] for at in range(len(message)))
            for at in range(len(split)):
                writer.write(split[at : at + 1])
                await asyncio.sleep(0)
            assert await reader.readexactly(len(split)) == split.upper()
            assert behind.heard

    monkeypatch.setattr(counted_relay, "read_client_hello", reading)
    run(body)
    assert len(reads) < 30


def test_a_connection_ends_after_its_life_however_much_it_says() -> None:
    async def body() -> None:
        async with relayed(RelayLimits(life_s=0.3)) as (_, _, port):
            reader, writer = await greeted(port)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    writer.write(b"x")
                    if not await asyncio.wait_for(reader.read(1), 5.0):
                        break
                    await asyncio.sleep(0.02)
                else:
                    pytest.fail("it lives on")

    run(body)


def test_a_crowd_pushes_out_its_oldest_and_newcomers_are_served() -> None:
    async def body() -> None:
        async with relayed(RelayLimits(connections=5)) as (_, _, port):
            crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
            reader, writer = await greeted(port)
            writer.write(b"honest")
            assert await asyncio.wait_for(reader.readexactly(6), 5.0) == b"HONEST"
            ended = 0
            for one, _ in crowd[:25]:
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(one.read(), 5.0) == b""
                ended += 1
            assert ended == 25

    run(body)


def test_a_peer_that_reads_nothing_holds_no_more_than_the_buffers() -> None:
    async def body() -> None:
        async with relayed(RelayLimits(life_s=0.5)) as (_, relay, port):
            deaf = socket.create_connection(("127.0.0.1", port))
            deaf.sendall(HELLO + b"a" * 100_000)
            await asyncio.sleep(1.5)
            assert len(relay._unknown) == 0
            deaf.close()

    run(body)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv4_through_an_ipv6_socket_is_ipv4() -> None:
    async def body() -> None:
        async with relayed(RelayLimits(), bind="::") as (behind, relay, port):
            for host in ("127.0.0.1", "::1"):
                reader, writer = await greeted(port, host)
                writer.write(b"a")
                await reader.readexactly(1)
                assert relay.origin(behind.ports[-1]) == host

    run(body)


def test_a_known_owners_connection_lasts_and_may_send_on_as_far_as_it_is_answered() -> None:
    limits = RelayLimits(sent_bytes=100, life_s=0.2, owned_bytes=1000, answers_a_byte=1, more_per_s=0.0)

    async def body() -> None:
        async with relayed(limits) as (behind, relay, port):
            reader, writer = await greeted(port)
            writer.write(b"a" * 50)
            await reader.readexactly(50)
            relay.belongs_to(behind.ports[0], "ward-a")
            for _ in range(20):  # each piece is answered with as many bytes
                writer.write(b"a" * 900)
                await reader.readexactly(900)
                await asyncio.sleep(0.02)

    run(body)


def test_what_is_never_answered_takes_the_allowance_and_no_more() -> None:
    limits = RelayLimits(owned_bytes=1000, answers_a_byte=10**9, more_per_s=0.0)

    async def body() -> None:
        async with relayed(limits) as (behind, relay, port):
            reader, writer = await greeted(port)
            writer.write(b"a")
            await reader.readexactly(1)
            relay.belongs_to(behind.ports[0], "ward-a")
            with contextlib.suppress(OSError):
                for _ in range(100):
                    writer.write(b"a" * 90)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                while await reader.read(65536):
                    pass
            assert len(behind.heard[0]) <= 1001 + len(HELLO)
            assert relay._owned == {}

    run(body)


def test_one_owner_has_few_connections_and_takes_nobody_elses() -> None:
    async def body() -> None:
        async with relayed(RelayLimits(of_one=2)) as (behind, relay, port):

            async def opened(owner: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await greeted(port)
                writer.write(b"a")
                await reader.readexactly(1)
                relay.belongs_to(behind.ports[-1], owner)
                return reader, writer

            honest = await opened("ward-b")
            crowd = [await opened("ward-a") for _ in range(5)]
            ended = [await asyncio.wait_for(reader.read(), 5.0) for reader, _ in crowd[:3]]
            assert ended == [b""] * 3
            for reader, writer in (honest, *crowd[3:]):
                writer.write(b"b")
                assert await asyncio.wait_for(reader.readexactly(1), 5.0) == b"B"

    run(body)
