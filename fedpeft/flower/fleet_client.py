"""Requests of Flower's Fleet protocol, signed with a device's key, over connections that trust one authority.

Flower's stock client does this through httpx, whose Python takes six times as long for a small request as the TLS and
the signature (docs/adr/0049). Here is what the protocol needs of HTTP/1.1: a POST with a body, an answer of known and
limited length, connections that are kept. What is signed and sent is what Flower's own client signs and sends.
"""

import select
import socket
import ssl
import threading
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from fedpeft.clock import SystemClock
from fedpeft.deployment.proxy import Proxy, connected, proxy_trouble
from fedpeft.errors import ConfigInvalid

__all__ = ["HOLD_HEADER", "FleetClient", "FleetTarget", "RequestRefused", "Unanswered"]

HOLD_HEADER = b"fedpeft-hold"
"""Of a pull: for how many seconds it may wait for a message before it is answered that there is none."""

REQUEST_S = 10.0
"""Without a byte of the answer: well within the deadline of a stage, so that a lost answer costs no round."""
STALLED_S = 30.0
"""Without a byte of a large request that the coordinator takes: it may wait for room for it."""
LARGE_BYTES = 64 * 1024
LEAST_PER_S = 16 * 1024.0
"""Of bytes that have left and are still on their way when the last one was sent; ``request_body`` asks as much."""
UNSENT_BYTES = 256 * 1024
"""That the system takes ahead of the network, so that what it has taken is about what has left."""
KEPT_S = 70.0
"""An unused connection; the gateway closes it after 75 s."""
HEAD_BYTES, ANSWER_BYTES = 16 * 1024, 16 * 2**20
"""Of an answer's line and headers, and of its body: three of Flower's chunks of 5 MB."""
REFUSAL_BYTES = 64 * 1024
PIECE_BYTES = 2**18

_ROUTES: dict[type[Message], tuple[str, type[Message]]] = {
    ActivateNodeRequest: ("activate-node", ActivateNodeResponse),
    DeactivateNodeRequest: ("deactivate-node", DeactivateNodeResponse),
    SendNodeHeartbeatRequest: ("send-node-heartbeat", SendNodeHeartbeatResponse),
    PullMessagesRequest: ("pull-messages", PullMessagesResponse),
    PushMessagesRequest: ("push-messages", PushMessagesResponse),
    PushObjectRequest: ("push-object", PushObjectResponse),
    PullObjectRequest: ("pull-object", PullObjectResponse),
    ConfirmMessageReceivedRequest: ("confirm-message-received", ConfirmMessageReceivedResponse),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTarget:
    """Where the coordinator is and who we are to it.

    Args:
        address: host:port of the gateway.
        ca: the coordinator's certificate authority, PEM; nothing else is trusted.
        node_key: the device's P-256 private key, PEM.
        proxy: on the way there; None: none, whatever the environment says.
    """

    address: str
    ca: bytes
    node_key: bytes
    proxy: Proxy | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The address as host and port."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def trouble(self) -> str:
        """Why the proxy makes no way there; empty where it does, or where there is none."""
        return proxy_trouble(*self.place, self.proxy)


class Unanswered(Exception):
    """A request to which no whole answer came: whether it arrived nobody knows."""


class RequestRefused(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        path: of the request.
        text: what the gateway says.
        headers: of the answer, names in small letters.
    """

    def __init__(self, status: int, path: str, text: str, headers: dict[str, str]) -> None:
        super().__init__(f"{status} to {path}")
        self.status, self.path, self.text, self.headers = status, path, text, headers


class FleetClient:
    """One device's requests; thread-safe. Close it.

    Args:
        target: to whom, as whom.

    Raises:
        ConfigInvalid: the key is no elliptic-curve key.
    """

    def __init__(self, target: FleetTarget) -> None:
        key = load_pem_private_key(target.node_key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigInvalid(f"Expected an elliptic-curve node key, found {type(key).__name__}; join again.")
        self._target, self._key = target, key
        self.public_key = public_key_to_bytes(key.public_key())
        self._signer = b64encode(self.public_key)
        self._trust = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=target.ca.decode("ascii"))
        self._idle: list[tuple[ssl.SSLSocket, float]] = []
        self._lock, self._clock = threading.Lock(), SystemClock()
        self._held: ssl.SSLSocket | None = None

    def ask(self, request: Message, answer: type[T], *, hold_s: int = 0) -> T:
        """The answer to one request.

        Args:
            request: of the Fleet protocol.
            answer: its type, for the checker of types.
            hold_s: for so long a pull may wait for a message; well under ``REQUEST_S``. One at a time.

        Raises:
            RequestRefused: another status than 200.
            Unanswered: no answer, or one that is none.
        """
        name, kind = _ROUTES[type(request)]
        path, body = f"/v1/fleet/{name}", cast("bytes", request.SerializeToString(deterministic=True))
        try:
            line = self._connection()
            try:
                self._held = line if hold_s else self._held
                with suppress(BrokenPipeError, ConnectionResetError):  # refused by its headers: the answer says why
                    _send(line, self._head(path, len(body), hold_s) + body)
                status, headers, content, kept = _answer(line)
            except BaseException:
                line.close()
                raise
            finally:
                self._held = None if hold_s else self._held
        except (OSError, ValueError) as error:
            raise Unanswered(str(error) or type(error).__name__) from error
        self._let_go(line, kept)
        if status != 200:
            raise RequestRefused(status, path, content[:REFUSAL_BYTES].decode("utf-8", "replace"), headers)
        try:
            return cast("T", kind.FromString(content))
        except DecodeError as error:
            raise Unanswered("expected an answer of the Fleet protocol, found another") from error

    def let_go(self) -> None:
        """End a pull that is held, as if its connection had broken; from any thread, or a signal's handler."""
        held = self._held
        if held is not None:
            with suppress(OSError):
                socket.socket.shutdown(held, socket.SHUT_RDWR)  # not TLS's, whose state its reader has in use

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            while self._idle:
                self._idle.pop()[0].close()

    def _head(self, path: str, size: int, hold_s: int) -> bytes:
        at = now().isoformat()
        signature = b64encode(sign_message(self._key, at.encode("ascii")))
        hold = f"{HOLD_HEADER.decode('ascii')}: {hold_s}\r\n" if hold_s else ""
        return (
            f"POST {path} HTTP/1.1\r\nhost: {self._target.address}\r\ncontent-type: application/x-protobuf\r\n"
            f"content-length: {size}\r\n{FLEET_HTTP_PUBLIC_KEY_HEADER}: {self._signer.decode('ascii')}\r\n"
            f"{TIMESTAMP_HEADER}: {at}\r\n{FLEET_HTTP_SIGNATURE_HEADER}: {signature.decode('ascii')}\r\n{hold}\r\n"
        ).encode("ascii")

    def _connection(self) -> ssl.SSLSocket:
        """An idle one that is open still, or a new one."""
        with self._lock:
            while self._idle:
                line, since_s = self._idle.pop()
                if self._clock.monotonic_s() - since_s < KEPT_S and _is_quiet(line):
                    return line
                line.close()  # too old, or the gateway has ended it
        host, port = self._target.place
        plain = connected(host, port, proxy=self._target.proxy, timeout_s=REQUEST_S)
        try:
            plain.settimeout(REQUEST_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            return self._trust.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def _let_go(self, line: ssl.SSLSocket, kept: bool) -> None:
        with self._lock:
            if kept and not self._idle:  # a heartbeat during a long request has opened another
                self._idle.append((line, self._clock.monotonic_s()))
                return
        line.close()


def _is_quiet(line: ssl.SSLSocket) -> bool:
    """Whether it is open and nothing has come on it since the last answer, decrypted or not."""
    waiting = select.poll()  # select takes no descriptor above 1023
    with suppress(OSError, ValueError):
        waiting.register(line, select.POLLIN)
        return not waiting.poll(0) and not line.pending()
    return False


def _send(line: ssl.SSLSocket, request: bytes) -> None:
    """The whole request, however slow the way, as long as it goes on; and as much time for its answer as that needs.

    Raises:
        OSError: nothing of it was taken for too long, or the connection broke.
    """
    if len(request) < LARGE_BYTES:
        line.settimeout(REQUEST_S)
        line.sendall(request)
        return
    line.settimeout(STALLED_S)
    for begin in range(0, len(request), LARGE_BYTES):  # the time is of each piece, and not of all of them
        line.sendall(memoryview(request)[begin : begin + LARGE_BYTES])
    line.settimeout(STALLED_S + min(len(request), 2 * UNSENT_BYTES) / LEAST_PER_S)


def _answer(line: ssl.SSLSocket) -> tuple[int, dict[str, str], bytes, bool]:
    """Status, headers and body of an answer, and whether the connection may be used again.

    Raises:
        ValueError: it is not one that the gateway gives.
        OSError: it did not come whole.
    """
    held = bytearray()
    while (end := held.find(b"\r\n\r\n")) < 0:
        if len(held) > HEAD_BYTES:
            raise ValueError(f"expected headers of at most {HEAD_BYTES} bytes, found more")
        held += _some(line, HEAD_BYTES)
    first, *rest = held[:end].decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    code = status[:3]
    if not version.startswith("HTTP/1.") or not (len(code) == 3 and code.isascii() and code.isdigit()):
        raise ValueError("expected an HTTP answer, found another")
    fields = [(name.strip().lower(), value.strip()) for name, _, value in (entry.partition(":") for entry in rest)]
    headers, size = dict(fields), _size(fields)
    if size is None:
        if code == "200":
            raise ValueError("expected an answer that says its length once, found none that does")
        return int(code), headers, b"", False  # of a listener that is ending, or of no gateway
    content = held[end + 4 :]
    while len(content) < size:
        content += _some(line, min(size - len(content), PIECE_BYTES))
    # What came behind the answer would be taken for the next one.
    kept = len(content) == size and not line.pending() and headers.get("connection", "").lower() != "close"
    return int(code), headers, bytes(content[:size]), kept


def _size(fields: list[tuple[str, str]]) -> int | None:
    """Of an answer's body, in bytes; None when its headers do not say it plainly: an empty body is a whole answer.

    Raises:
        ValueError: it is more than an answer may be.
    """
    lengths = [value for name, value in fields if name == "content-length"]
    if len(lengths) != 1 or any(name == "transfer-encoding" for name, _ in fields):
        return None
    (length,) = lengths
    if not (length.isascii() and length.isdigit()):
        return None
    if (size := int(length)) > ANSWER_BYTES:
        raise ValueError(f"expected an answer of at most {ANSWER_BYTES} bytes, found {size}")
    return size


def _some(line: ssl.SSLSocket, most: int) -> bytes:
    piece = line.recv(most)
    if not piece:
        raise ConnectionError("the coordinator ended the connection before its answer")
    return piece
