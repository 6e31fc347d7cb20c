"""A process of ours that does the heavy or dangerous part, and its parent's end of the line.

The parent asks by name and bytes and gets bytes, an error of ``fedpeft.errors``, or the news that the child died: when
the system kills a process for its memory, the one that speaks for the device or the coordinator must live to say so.
Frames are ``multiprocessing.connection``'s ``send_bytes``: nothing is pickled.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe

from fedpeft import errors
from fedpeft.errors import FedpeftError
from fedpeft.fork_server import ForkedProcess, start_forked
from fedpeft.logs import log_to_stderr
from fedpeft.parent_death import die_with_parent

__all__ = ["Child", "ChildDied", "answer_parent"]

_OK, _FAILED, _BUG = b"ok", b"failed", b"bug"
_log = logging.getLogger(__name__)


class ChildDied(Exception):
    """The child ended in the middle of a request.

    Args:
        status: its exit status; negative: the signal that ended it; None: it could not be started.
        overdue_s: how long it had; None: it ended by itself.
    """

    def __init__(self, status: int | None, *, overdue_s: float | None = None) -> None:
        self.overdue = overdue_s is not None
        if overdue_s is not None:
            super().__init__(f"the process was ended: it took longer than {overdue_s:.0f} s")
            self.out_of_memory = False
            return
        killed = status is not None and status < 0
        how = f"was killed by {signal.Signals(-(status or 0)).name}" if killed else f"ended with status {status}"
        super().__init__(f"the process {how}" if status is not None else "the process could not be started")
        self.out_of_memory = status == -signal.SIGKILL


class Child:
    """One child, started with the first request and again after it died. Thread-safe: requests wait for each other.

    Args:
        module: run as ``python -m module ARGUMENTS``, forked where there is a server for it (``fedpeft.fork_server``);
            it calls ``answer_parent``.
        arguments: its command line.
        environment: added to ours.
    """

    def __init__(
        self, module: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._module, self._arguments, self._environment = module, tuple(arguments), dict(environment or {})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._line: Connection | None = None
        self._kills = 0

    @property
    def pid(self) -> int | None:
        """The running child's."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask(self, name: str, payload: bytes = b"", *, within_s: float | None = None) -> bytes:
        """One request.

        Args:
            name: of the child's handler.
            payload: what it gets.
            within_s: how long the child may take before it is killed; None: for ever.

        Raises:
            FedpeftError: what the child raised, of the same class.
            ChildDied: it did not answer and never will.
        """
        kills = self._kills
        with self._lock:
            try:
                line = self._started()
            except OSError as error:
                raise ChildDied(self._reap()) from error
            if self._kills != kills:  # it came while this request waited, or found no child that it could end
                self._end()
                raise ChildDied(self._reap())
            try:
                line.send_bytes(name.encode())
                line.send_bytes(payload)
                if within_s is not None and not line.poll(within_s):
                    self._end()
                    self._reap()
                    raise ChildDied(None, overdue_s=within_s)
                verdict, answer = line.recv_bytes(), line.recv_bytes()
            except (EOFError, OSError) as error:
                status = self._reap()
                raise ChildDied(status) from error
        if verdict == _OK:
            return answer
        kind, _, text = answer.decode().partition("\n")
        found = getattr(errors, kind, None)
        if verdict == _FAILED and isinstance(found, type) and issubclass(found, FedpeftError):
            raise found(text)
        raise RuntimeError(f"{self._module}: {text}")

    def rest(self) -> bool:
        """End the child unless it is at work; the next request starts it again.

        Returns:
            Whether there was one to end.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self.pid is None:
                return False
            self._end()
            self._reap()
            return True
        finally:
            self._lock.release()

    def kill(self) -> None:
        """End the child now, whatever it does; a request that waits or just begins gets ``ChildDied``."""
        self._kills += 1
        self._end()

    def close(self) -> None:
        """End the child and take it away."""
        self.kill()
        with self._lock:
            self._reap()

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _started(self) -> Connection:
        if self._line is not None and self._process is not None and self._process.poll() is None:
            return self._line
        self._reap()
        ours, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **self._environment}
        with theirs:
            forked = None
            with contextlib.suppress(OSError):  # the server has ended, or cannot fork
                forked = start_forked(
                    self._module,
                    ["{0}", "{parent}", *self._arguments],
                    environment=environment,
                    passed=[theirs.fileno()],
                )
            self._process = forked or subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), str(os.getpid()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, which ends the child in its own time
            )
        self._line = ours
        return ours

    def _reap(self) -> int | None:
        if self._line is not None:
            self._line.close()
            self._line = None
        status = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            if self._process.poll() is None:
                self._process.kill()
            status = self._process.wait()
            self._process = None
        return status


def answer_parent(handlers: Callable[[Sequence[str]], Mapping[str, Callable[[bytes], bytes]]]) -> None:
    """The child's main: answer requests until the parent goes away.

    Args:
        handlers: makes them from the command line; called once, before the first request is read.
    """
    descriptor, parent, *arguments = sys.argv[1:]
    log_to_stderr()
    die_with_parent(int(parent))
    line = Connection(int(descriptor))
    known: Mapping[str, Callable[[bytes], bytes]] | None = None
    while True:
        try:
            name, payload = line.recv_bytes().decode(), line.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            if known is None:
                known = handlers(arguments)
            verdict, answer = _OK, known[name](payload)
        except FedpeftError as error:
            kind = next(c.__name__ for c in type(error).__mro__ if c.__name__ in errors.__all__)
            verdict, answer = _FAILED, f"{kind}\n{error}".encode()
        except MemoryError:
            verdict, answer = _FAILED, b"ResourceMissing\nExpected enough memory, found none left."
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # extension libraries panic by exceptions that are none of Exception's
            _log.exception("%s failed", name)
            verdict, answer = _BUG, f"{type(error).__name__}\n{type(error).__name__} in the child process".encode()
        line.send_bytes(verdict)
        line.send_bytes(answer)
