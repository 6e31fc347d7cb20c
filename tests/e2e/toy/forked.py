"""Toy processes that are forked from one that has done the imports, which are most of what a new interpreter costs.

A process of its own in all else: pid, memory, files, environment, log, and what the system does to it.
"""

import atexit
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest.mock import patch

__all__ = ["Forked"]

TOY = Path(__file__).parent
PRELOADED = (
    "fedpeft_server.coordinator",
    "fedpeft_server.run.federation",
    "fedpeft_client.process.agent",
    "fedpeft_client.process.coordinator_services",
    "fedpeft_client.training.device_stores",
    "fedpeft.testing.network",
    "fedpeft.testing.runs",
    "fedpeft.testing.trainers",
)
SERVER = get_context("forkserver")


class Forked:
    """``python SCRIPT ARGUMENT``, with what is used here of ``subprocess.Popen``.

    Args:
        script: run as ``__main__``.
        arguments: its command line.
        environment: all of it.
        log: where it writes on, both streams.
    """

    def __init__(self, script: Path, *arguments: object, environment: Mapping[str, str], log: Path) -> None:
        _ready()
        line = (str(script), *map(str, arguments))
        self._process = SERVER.Process(target=_begin, args=(line, dict(environment), str(log)), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None: it runs; negative: the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See ``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended; ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a toy process", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _ready() -> None:
    """The one that is forked is there, with the modules that it loads."""
    SERVER.set_forkserver_preload(list(PRELOADED))
    path = os.pathsep.join([str(TOY), *(entry for entry in sys.path if entry)])
    # gRPC reads it when it is imported, and in a process of ours ``log_to_stderr`` has set it by then.
    with patch.dict(os.environ, {"PYTHONPATH": path, "GRPC_VERBOSITY": "NONE"}):
        forkserver.ensure_running()


def _begin(line: tuple[str, ...], environment: Mapping[str, str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(line)
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
