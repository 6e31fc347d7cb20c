"""Work on what a stranger wrote, in a process of its own with limits of CPU time and memory.

A chat template is a program (Jinja), and its sandbox bounds neither loops nor the size of a string. Here such work is
done in a fork of this process that the system ends when it takes more than it was given; what it makes comes back as
JSON. Nothing that it does to its memory is seen by its parent.
"""

import contextlib
import json
import os
import resource
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from fedpeft.bounded_json import JsonLimits, JsonValue, loads
from fedpeft.clock import SystemClock

__all__ = ["IsolationEnded", "isolated"]

_DONE, _FAILED, _MEMORY = b"+", b"-", b"m"
_PIECE_BYTES = 1 << 20
_WALL = 10.0
"""Seconds on the wall for a second of CPU time: a busy machine may take so much longer."""


class IsolationEnded(Exception):
    """The work ended without a result.

    Args:
        how: in words.
        exhausted: whether it took more than it was given; else it raised.
    """

    def __init__(self, how: str, *, exhausted: bool) -> None:
        super().__init__(how)
        self.exhausted = exhausted


def isolated(
    work: Callable[[], JsonValue], *, cpu_s: float, memory_bytes: int, result_bytes: int = 1 << 30
) -> JsonValue:
    """What ``work`` returns, computed in a fork of this process.

    Args:
        work: must not touch threads, GPUs or files; an exception of it becomes ``IsolationEnded`` with its text.
        cpu_s: of CPU time; ten times as much on the wall.
        memory_bytes: beyond what this process has mapped already.
        result_bytes: of the result as JSON.

    Raises:
        IsolationEnded: it took too much, or failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(work, writing, cpu_s, memory_bytes)
    os.close(writing)
    said, status = b"", 0
    try:
        said = _read(reading, cpu_s * _WALL, result_bytes)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it has said all, or too much
        _, status = os.waitpid(child, 0)
    if said[:1] == _DONE:
        return loads(said[1:], JsonLimits(max_bytes=result_bytes, max_depth=64, surrogates=True))
    if said[:1] in (_FAILED, _MEMORY):
        raise IsolationEnded(said[1:].decode(errors="replace"), exhausted=said[:1] == _MEMORY)
    ended = os.waitstatus_to_exitcode(status)
    how = f"{cpu_s:.0f} s of CPU time" if ended == -signal.SIGXCPU else f"its limits (it ended with {ended})"
    raise IsolationEnded(f"it took more than {how}", exhausted=True)


def _work(work: Callable[[], JsonValue], writing: int, cpu_s: float, memory_bytes: int) -> NoReturn:
    """The child; never returns into its parent's code."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        _limit(resource.RLIMIT_CPU, int(cpu_s) + 1)
        _limit(resource.RLIMIT_AS, _mapped_bytes() + memory_bytes)
        try:
            said = _DONE + json.dumps(work()).encode()
        except MemoryError:
            said = _MEMORY + f"it took more than {memory_bytes >> 20} MiB of memory".encode()
        except BaseException as error:  # of extension libraries, too
            said = _FAILED + f"{type(error).__name__}: {error}"[:500].encode(errors="replace")
        view = memoryview(said)
        while view:
            view = view[os.write(writing, view) :]
    finally:
        os._exit(0)


def _read(reading: int, wall_s: float, most: int) -> bytes:
    """All that the child says; too little when time or ``most`` bytes are over."""
    clock = SystemClock()
    end, size = clock.monotonic_s() + wall_s, 0
    pieces: list[bytes] = []
    while size <= most:
        left_s = end - clock.monotonic_s()
        if left_s <= 0 or not select.select([reading], [], [], left_s)[0]:
            return b""
        piece = os.read(reading, _PIECE_BYTES)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
    return b""


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _mapped_bytes() -> int:
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 1 << 36
