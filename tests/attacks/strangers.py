"""What somebody without any credential can send to a coordinator's ports; used by these tests and the benchmark."""

import contextlib
import resource
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CLIENT_HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01"
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04\x00" + struct.pack(">I", 0)


def rss_mb(pid: int) -> float:
    """A process's resident set now, MiB."""
    return _status_mb(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    """A process's largest resident set so far, MiB."""
    return _status_mb(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Let ``peak_mb`` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_mb(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def many_descriptors() -> None:
    """Let this process open as many sockets as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tls(port: int, ca: Path, *, alpn: str = "http/1.1") -> ssl.SSLSocket:
    """A finished handshake without a certificate."""
    trust = ssl.create_default_context(cafile=str(ca))
    trust.set_alpn_protocols([alpn])
    plain = socket.create_connection(("localhost", port), 5.0)
    return trust.wrap_socket(plain, server_hostname="localhost")


def pour(one: socket.socket, begin: bytes, unit: bytes, *, seconds: float) -> int:
    """Send ``begin``, then ``unit`` for ever or until the other side ends it; how many bytes were taken.

    The own send buffer is kept small, so that little of what counts was taken by the kernel alone.
    """
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
    sent, end = 0, time.monotonic() + seconds
    block = unit * max(1, 2**16 // len(unit))
    one.settimeout(1.0)
    with contextlib.suppress(OSError):
        one.sendall(begin)
        while time.monotonic() < end:
            sent += one.send(block)
    return sent


def answer(one: socket.socket, *, within_s: float = 5.0) -> bytes:
    """What was answered until the connection ended; a reset is an end."""
    one.settimeout(within_s)
    said = b""
    with contextlib.suppress(OSError):
        while part := one.recv(65536):
            said += part
    return said


@contextlib.contextmanager
def held(connect: Callable[[], socket.socket], count: int) -> Iterator[list[socket.socket]]:
    """That many connections, those that could be made."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                made.append(connect())
        yield made
    finally:
        for one in made:
            one.close()


def idle_h2(port: int, ca: Path) -> socket.socket:
    """An HTTP/2 connection that has said its preface and nothing else."""
    one = tls(port, ca, alpn="h2")
    one.sendall(H2_PREFACE)
    return one


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header_field(name: bytes, value: bytes) -> bytes:
    """A literal field that no table keeps (RFC 7541, section 6.2.2); both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def half_tls(port: int) -> socket.socket:
    """A connection that begins a TLS handshake and stops."""
    one = socket.create_connection(("127.0.0.1", port), 5.0)
    one.sendall(CLIENT_HELLO_BEGUN)
    return one


def still_open(connections: list[socket.socket]) -> int:
    """How many of them the other side has not ended."""
    with selectors.DefaultSelector() as selector:
        alive = 0
        for one in connections:
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ)
            try:
                while one.recv(65536):
                    pass
            except (BlockingIOError, ssl.SSLWantReadError):
                alive += 1
            except OSError:
                pass
            selector.unregister(one)
    return alive


class Asking:
    """Asks again and again from a thread how long an honest request takes, until ``close``.

    Args:
        ask: one honest request.
        every_s: between two.
    """

    def __init__(self, ask: Callable[[], object], *, every_s: float = 0.05) -> None:
        self.seconds: list[float] = []
        self.failed = 0
        self._ask, self._every_s, self._done = ask, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(30.0)

    @property
    def p99_s(self) -> float:
        """The 99th of a hundred."""
        ordered = sorted(self.seconds)
        return ordered[int(0.99 * (len(ordered) - 1))] if ordered else float("inf")

    def _run(self) -> None:
        while not self._done.is_set():
            begun = time.monotonic()
            try:
                self._ask()
            except Exception:
                self.failed += 1
            self.seconds.append(time.monotonic() - begun)
            self._done.wait(self._every_s)
