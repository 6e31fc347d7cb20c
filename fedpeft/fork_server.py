"""Processes that are forked from one that has imported what they need, where many are started on one machine.

Importing torch and transformers takes six CPU seconds and 300 MB; a federation of eight devices on one machine does it
nine times. A fork server does it once, shares the memory, and forks. It runs one thread, which is what makes a fork
safe, and has no address: whoever holds a descriptor of it, as its children do, may ask for a process. Linux only.

A forked process has its own process id, session, descriptors and environment. Its keys come from the operating system,
as everybody's do (``fedpeft.entropy``), and the generators of Python, numpy and torch are seeded anew, so no two
processes share a random state. It is killed when the process that asked for it or the server dies, as
``fedpeft.parent_death`` would have it. What the server itself does is ``fedpeft.fork_loop``.
"""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Self

from fedpeft.fork_loop import ENVIRONMENT, MOST_BYTES, Server, named
from fedpeft.parent_death import die_with_parent

__all__ = ["ENVIRONMENT", "ForkServer", "ForkedProcess", "can_fork", "start_forked"]


class ForkedProcess:
    """A process that a fork server started, with what is used here of ``subprocess.Popen``.

    Args:
        line: on which the server tells first its process id, with a descriptor of it, then its exit status; closing it
            ends the process.

    The descriptor comes from the server: a process that has ended by then may be opened by its parent alone.

    Raises:
        OSError: the server is gone or could not fork, or this process may open no more descriptors.
    """

    def __init__(self, line: socket.socket) -> None:
        told, handles, _, _ = socket.recv_fds(line, 16, 1)
        if not told:
            line.close()
            raise ConnectionResetError(
                "Expected a fork server with a process to give, found that it has ended or cannot fork."
            )
        if not handles:
            line.close()
            raise OSError(errno.EMFILE, "Expected room for a descriptor of the forked process, found too many open")
        self.pid = int(told)
        self.returncode: int | None = None
        self._line, self._handle, self._lock = line, handles[0], threading.Lock()
        weakref.finalize(self, os.close, self._handle)

    def poll(self) -> int | None:
        """Exit status; negative: the signal that ended it; None: it runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended; ``subprocess.TimeoutExpired`` after so many seconds."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                return  # it ended in this moment

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            events = select.poll()
            events.register(self._line, select.POLLIN)
            if events.poll(None if timeout is None else 1000 * timeout):
                self._hear()
        return self.returncode

    def _hear(self) -> None:
        with self._lock:
            if self.returncode is None:
                told = self._line.recv(16)
                self.returncode = int(told) if told else -signal.SIGKILL  # the server died, and its children with it


class ForkServer:
    """Use it in a ``with``, or ``close`` it; whatever it started is killed then.

    Args:
        modules: what it imports before it forks. They must start no thread when they are imported.
        what: for whoever lists processes; part of its command line, which those that it forks share.
        output: descriptor of what it says itself, as of a module that cannot be imported.
    """

    def __init__(self, modules: Sequence[str], *, what: str, output: int = 2) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked = ours
        command = [sys.executable, "-m", "fedpeft.fork_server", str(theirs.fileno()), str(ours.fileno())]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [*command, str(os.getpid()), what, *modules],
            pass_fds=[theirs.fileno(), ours.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"GRPC_VERBOSITY": "NONE", **os.environ, "PYTHONPATH": path},  # as ``fedpeft.logs`` has it
            start_new_session=True,
        )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str], output: int
    ) -> ForkedProcess:
        """``python -m module ARGUMENTS``; ``{parent}`` in an argument is its parent's process id. See ``_ask``."""
        return _ask(self._asked, module, arguments, environment=environment, output=output)

    @property
    def descriptor(self) -> int:
        """For a process that is to ask, too: it inherits this, and ``environment``."""
        return self._asked.fileno()

    @property
    def environment(self) -> dict[str, str]:
        """See ``descriptor``."""
        return {ENVIRONMENT: named(self.descriptor)}

    def close(self) -> None:
        """End the server, and with it what it started."""
        self._asked.close()
        self._process.kill()
        self._process.wait()


def can_fork() -> bool:
    """Whether this machine has what it takes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def start_forked(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str], passed: Sequence[int]
) -> ForkedProcess | None:
    """A process of the server that this process may ask; None: there is no server. See ``_ask``."""
    number, _, _ = os.environ.get(ENVIRONMENT, "").partition(":")
    if not number.isdecimal() or named(int(number)) != os.environ[ENVIRONMENT]:
        return None  # or a process inherited the environment and not the descriptor
    with socket.socket(fileno=os.dup(int(number))) as asked:
        return _ask(asked, module, arguments, environment=environment, output=2, passed=passed)


def _ask(
    asked: socket.socket,
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int,
    passed: Sequence[int] = (),
) -> ForkedProcess:
    """Have ``python -m module ARGUMENTS`` forked.

    Args:
        asked: the server.
        arguments: ``{parent}`` stands for the parent's process id, ``{0}``, ``{1}`` for the passed descriptors.
        environment: all of it.
        output: descriptor of both output streams.
        passed: further descriptors that the process gets.

    Raises:
        OSError: the server is gone, or it could not fork.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"module": module, "arguments": list(arguments), "environment": dict(environment)}).encode()
    if len(request) > MOST_BYTES:
        raise OSError(errno.E2BIG, f"Expected arguments and environment of {MOST_BYTES} bytes, found {len(request)}")
    with theirs:
        socket.send_fds(asked, [request], [theirs.fileno(), output, *passed])
    return ForkedProcess(ours)


def main(arguments: Sequence[str]) -> None:
    """The server: both ends of its line, its parent's process id, what it is for, the modules."""
    asks, asked, parent, _, *modules = arguments
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for module in modules:
        import_module(module)
    Server(socket.socket(fileno=int(asks)), socket.socket(fileno=int(asked))).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
