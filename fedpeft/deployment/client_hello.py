"""What a client says before anything is encrypted (TLS ClientHello, RFC 8446 section 4.1.2), and whose it is then.

Where a coordinator has one port for everything, a connection goes by that: gRPC offers ``h2`` alone by ALPN (RFC 7301),
and who enrols names ``ENROL_NAME`` (server name indication, RFC 6066 section 3). Nothing that is said here is trusted:
it chooses which server answers, and each of them asks for what it always asks.
"""

from dataclasses import dataclass
from enum import Enum

__all__ = ["ENROL_NAME", "HELLO_MAX_BYTES", "ClientHello", "Way", "read_client_hello", "way_of"]

ENROL_NAME = "enrol.fedpeft.internal"
"""In the certificate of a coordinator with one port: whoever has no certificate yet asks for it."""
HELLO_MAX_BYTES = 16 * 1024
"""Of records; the largest seen, with a post-quantum key share, takes 2 KiB."""
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _ALPN = 22, 1, 0, 16


class Way(Enum):
    """Which of a coordinator's public ports it would have been."""

    FLEET = "fleet"
    SERVICE = "service"
    ENROL = "enrol"


@dataclass(frozen=True, slots=True)
class ClientHello:
    """Of a ClientHello what is read here.

    Args:
        server_name: in lower case; empty: none.
        protocols: offered by ALPN, in order.
    """

    server_name: str
    protocols: tuple[str, ...]


def way_of(hello: ClientHello) -> Way:
    """Where a connection that begins so goes."""
    if "h2" not in hello.protocols or "http/1.1" in hello.protocols:
        return Way.FLEET
    return Way.ENROL if hello.server_name == ENROL_NAME else Way.SERVICE


def read_client_hello(records: bytes) -> ClientHello | None:
    """The ClientHello at the beginning of a connection's bytes; None: it goes on, and there are not enough of them yet.

    Args:
        records: the first bytes of a connection, ``HELLO_MAX_BYTES`` at most.

    Raises:
        ValueError: this is no ClientHello, or a longer one.
    """
    message, at = b"", 0
    while True:
        header = records[at : at + 5]
        if header and (header[0] != _HANDSHAKE or header[1:2] not in (b"", b"\x03")):
            raise ValueError("not TLS")
        if len(header) < 5:
            break
        size = int.from_bytes(header[3:5])
        if not size:
            raise ValueError("a record without content")
        message += records[at + 5 : at + 5 + size]
        at += 5 + size
        if len(message) >= 4:
            ends = 4 + int.from_bytes(message[1:4])
            if message[0] != _CLIENT_HELLO or ends > HELLO_MAX_BYTES:
                raise ValueError("not a ClientHello, or too long")
            if len(message) >= ends:
                return _read(message[4:ends])
        if at > len(records):
            break
    if len(records) >= HELLO_MAX_BYTES:
        raise ValueError("too long")
    return None


def _read(body: bytes) -> ClientHello:
    _, rest = _taken(body, 2 + 32)  # legacy_version, random
    for prefix in (1, 2, 1):  # session id, cipher suites, compression methods
        _, rest = _vector(rest, prefix)
    name, protocols = "", []
    extensions = _vector(rest, 2)[0] if rest else b""
    while extensions:
        kind, extensions = _taken(extensions, 2)
        content, extensions = _vector(extensions, 2)
        if int.from_bytes(kind) == _SERVER_NAME:
            name = _server_name(content)
        elif int.from_bytes(kind) == _ALPN:
            offered, _ = _vector(content, 2)
            while offered:
                one, offered = _vector(offered, 1)
                protocols.append(one.decode("latin-1"))
    return ClientHello(name, tuple(protocols))


def _server_name(content: bytes) -> str:
    names, _ = _vector(content, 2)
    while names:
        kind, names = _taken(names, 1)
        name, names = _vector(names, 2)
        if kind == b"\0":
            return name.decode("latin-1").lower()
    return ""


def _vector(content: bytes, prefix: int) -> tuple[bytes, bytes]:
    """What stands behind its own length, and the rest."""
    size, rest = _taken(content, prefix)
    return _taken(rest, int.from_bytes(size))


def _taken(content: bytes, size: int) -> tuple[bytes, bytes]:
    if len(content) < size:
        raise ValueError("a ClientHello that ends early")
    return content[:size], content[size:]
