"""The one port's reading of a ClientHello: against what OpenSSL and gRPC really send, in any pieces, and any bytes."""

import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.clock import SystemClock
from fedpeft.deployment.client_hello import (
    ENROL_NAME,
    HELLO_MAX_BYTES,
    ClientHello,
    Way,
    read_client_hello,
    way_of,
)
from fedpeft.deployment.rpc import secure_channel
from fedpeft.entropy import os_entropy
from fedpeft_server.enrolment.certificate_authority import initialise
from fedpeft_server.home import CoordinatorHome, Settings


def said(name: str | None, protocols: tuple[str, ...], newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, newest
    if protocols:
        context.set_alpn_protocols(list(protocols))
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(there, here, server_hostname=name).do_handshake()
    return here.read()


HELLO = said("fed.example.org", ("h2", "http/1.1"))


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "fed.example.org", "FED.Example.org", "127.0.0.1", "::1", ENROL_NAME])
@pytest.mark.parametrize("protocols", [(), ("h2",), ("http/1.1",), ("h2", "http/1.1"), tuple("abcdefgh")])
def test_it_is_what_was_asked_for(name: str | None, protocols: tuple[str, ...], newest: ssl.TLSVersion) -> None:
    found = read_client_hello(said(name, protocols, newest))
    named = "" if name is None or name in ("127.0.0.1", "::1") else name.lower()  # no address is sent as a name
    assert found == ClientHello(named, protocols)


def test_before_its_last_byte_there_is_nothing_and_more_behind_it_is_not_looked_at() -> None:
    whole = read_client_hello(HELLO)
    assert whole is not None
    for size in range(len(HELLO)):
        assert read_client_hello(HELLO[:size]) is None
    assert read_client_hello(HELLO + b"\x14\x03\x03\x00\x01\x01") == whole


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), st.data())
def test_it_may_come_in_any_records(sizes: list[int], data: st.DataObject) -> None:
    message, records = HELLO[5:], b""
    while message:
        size = sizes[len(message) % len(sizes)]
        piece, message = message[:size], message[size:]
        records += b"\x16\x03\x01" + len(piece).to_bytes(2) + piece
    cut = data.draw(st.integers(0, len(records) - 1))
    assert read_client_hello(records) == read_client_hello(HELLO)
    assert read_client_hello(records[:cut]) in (None, read_client_hello(HELLO))


@given(st.one_of(st.binary(max_size=400), st.binary(max_size=200).map(lambda tail: HELLO[: len(HELLO) // 2] + tail)))
def test_any_bytes_are_one_or_none_or_refused(content: bytes) -> None:
    try:
        read_client_hello(content)
    except ValueError:
        return


def test_one_changed_byte_is_no_other_failure() -> None:
    draw = np.random.default_rng(1)
    for at, value in zip(draw.integers(0, len(HELLO), 3000), draw.integers(0, 256, 3000), strict=True):
        changed = bytearray(HELLO)
        changed[at] = value
        try:
            read_client_hello(bytes(changed))
        except ValueError:
            continue


@pytest.mark.parametrize(
    "content",
    [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x00", b"PRI * HTTP/2.0", b"\x16\x03\x01\x40\x00\x02\x00\x00\x00",
     b"\x16\x03\x01\x40\x00\x01\xff\xff\xff", (b"\x16\x03\x01\x00\x01\x01" * HELLO_MAX_BYTES)[:HELLO_MAX_BYTES]],
)  # fmt: skip
def test_what_is_no_client_hello_is_refused_at_once(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_client_hello(content)


@pytest.mark.parametrize(("name", "way"), [("", Way.SERVICE), (ENROL_NAME, Way.ENROL)])
def test_grpc_goes_where_it_says(name: str, way: Way, tmp_path: Path) -> None:
    """Over a real channel."""
    home = CoordinatorHome(tmp_path)
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        target, authority = f"localhost:{listening.getsockname()[1]}", home.ca_certificate.read_bytes()
        channel = secure_channel(target, authority=authority, name=name)
        calling = threading.Thread(target=lambda: channel.unary_unary("/a/b").future(b"").exception(timeout=10))
        calling.start()
        connection, _ = listening.accept()
        with connection:
            content = b""
            while (hello := read_client_hello(content)) is None:
                content += connection.recv(100)
        channel.close()
        calling.join()
    assert hello.server_name == (name or "localhost")
    assert way_of(hello) is way


def test_everything_else_is_the_gateways() -> None:
    for protocols in ((), ("http/1.1",), ("h2", "http/1.1"), ("http/1.1", "h2")):
        for name in ("", "fed.example.org", ENROL_NAME):
            assert way_of(ClientHello(name, protocols)) is Way.FLEET
