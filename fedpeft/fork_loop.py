"""The side of a fork server that forks: its loop, and what a forked process does first. See ``fedpeft.fork_server``."""

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from functools import partial

from fedpeft.parent_death import die_with_parent

__all__ = ["ENVIRONMENT", "MOST_BYTES", "Server", "named"]

ENVIRONMENT = "FEDPEFT_FORK_SERVER"
"""Set in processes that may ask a fork server: the number of its descriptor, and of which socket it is one."""

MOST_BYTES = 1 << 17
"""Of a request: a command line and an environment."""

PASSED = 8
"""Descriptors that a request may pass."""


class Server:
    """The loop of the server's only thread.

    Args:
        asks: where requests come.
        asked: the other end, which children get: they may ask, too.
    """

    def __init__(self, asks: socket.socket, asked: socket.socket) -> None:
        self._asks, self._asked = asks, asked
        self._events = selectors.DefaultSelector()
        self._events.register(asks, selectors.EVENT_READ, self._request)

    def serve(self) -> None:
        """For ever: the parent kills it."""
        while True:
            for key, _ in self._events.select():
                # An event before may have closed the descriptor, and a request opened another one of its number.
                if self._events.get_map().get(key.fd) is key:
                    key.data()

    def _request(self) -> None:
        """Fork; whoever asked sees the line close where that cannot be done, and the server goes on."""
        text, descriptors, flags, _ = socket.recv_fds(self._asks, MOST_BYTES, PASSED)
        with contextlib.ExitStack() as given:
            for descriptor in descriptors:
                given.callback(os.close, descriptor)
            if len(descriptors) < 2 or flags & socket.MSG_CTRUNC:  # sent without, or this process may open no more
                return
            try:
                pid, handle, line = self._forked(text, descriptors)
            except OSError:  # no more processes, memory or descriptors
                traceback.print_exc()
                return
        self._events.register(handle, selectors.EVENT_READ, partial(self._ended, pid, handle, line))
        self._events.register(line, selectors.EVENT_READ, partial(self._abandoned, handle, line))
        _tell(line, pid, handle)

    def _forked(self, text: bytes, descriptors: Sequence[int]) -> tuple[int, int, socket.socket]:
        """Its process id, a descriptor of it, and the line of whoever asked."""
        line = socket.socket(fileno=os.dup(descriptors[0]))
        try:
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                _become(text, descriptors[1], descriptors[2:], self._asked.fileno(), server)
            try:
                return pid, os.pidfd_open(pid), line
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError:
            line.close()
            raise

    def _ended(self, pid: int, handle: int, line: socket.socket) -> None:
        _, status = os.waitpid(pid, 0)
        self._events.unregister(handle)
        os.close(handle)
        if line.fileno() >= 0:
            self._events.unregister(line)
            _tell(line, os.waitstatus_to_exitcode(status))
            line.close()

    def _abandoned(self, handle: int, line: socket.socket) -> None:
        self._events.unregister(line)
        line.close()
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def named(descriptor: int) -> str:
    """Descriptor and inode: of a socket that nobody can mistake for another one."""
    try:
        return f"{descriptor}:{os.fstat(descriptor).st_ino}"
    except OSError:
        return ""


def _tell(line: socket.socket, number: int, *descriptors: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone: the loop sees that next
        socket.send_fds(line, [str(number).encode()], descriptors)


def _become(text: bytes, output: int, passed: Sequence[int], asked: int, server: int) -> None:
    """The forked process, to its end.

    Args:
        text: the request.
        output: descriptor of both output streams.
        passed: further descriptors that it keeps.
        asked: for requests of its own.
        server: its parent's process id; asked of the system after the fork it may be somebody else's by then.
    """
    status = 1
    try:
        os.setsid()
        die_with_parent(server)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _close_all_but({0, 1, 2, asked, *passed})
        _reseed()
        request = json.loads(text)
        environment = {str(key): str(value) for key, value in dict(request["environment"]).items()}
        os.environ.clear()
        os.environ.update({**environment, ENVIRONMENT: named(asked)})
        module = str(request["module"])
        given: Sequence[str] = request["arguments"]
        stand_for = {"{parent}": str(server), **{f"{{{place}}}": str(each) for place, each in enumerate(passed)}}
        sys.argv = [module, *(stand_for.get(each, each) for each in given)]
        sys.path[:0] = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]
        if "torch" in sys.modules and "OMP_NUM_THREADS" in environment:  # OpenMP read the server's when it was loaded
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it is imported already
        runpy.run_module(module, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = _status_of(end)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(status)


def _reseed() -> None:
    """Global generators whose state the fork copied; Python's own is seeded anew by Python."""
    if "numpy.random" in sys.modules:
        words = os.urandom(32)
        sys.modules["numpy.random"].seed([int.from_bytes(words[i : i + 4]) for i in range(0, len(words), 4)])
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(int.from_bytes(os.urandom(8)))


def _status_of(end: SystemExit) -> int:
    """As an interpreter takes it: a text is said, and is a failure."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return 1


def _end(status: int) -> None:
    """As an interpreter ends: threads, then exit functions, then what was printed."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:
        status = status or 120  # an interpreter's when its output cannot be written
    finally:
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with contextlib.suppress(OSError):  # the one that listed the folder
                os.close(descriptor)
