"""Processes of tests are forked from one that has done the imports: four CPU seconds less each.

The workers of pytest-xdist share it. It belongs to the process that they belong to, which gives its descriptor to
whoever asks for it (``offer``); without workers a test process has its own.
"""

import atexit
import os
import shutil
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from fedpeft.fork_loop import named
from fedpeft.fork_server import ENVIRONMENT, ForkedProcess, ForkServer, _ask

__all__ = ["SharedServer", "fork_command", "forking", "offer", "start_command"]

PRELOADED = {
    "commands": (
        "fedpeft.cli",
        "fedpeft.api.kept",
        "fedpeft.api.simulation",
        "fedpeft.export",
        "fedpeft_client.process.agent",
        "fedpeft_client.process.coordinator_services",
        "fedpeft_client.process.worker",
        "fedpeft_client.serving.server",
        "fedpeft_client.training.site_trainer",
        "fedpeft_server.coordinator",
        "fedpeft_server.run.run_view",
        "fedpeft_sim.live",
        "fedpeft_sim.outcome",
    ),
    "toys": (
        "fedpeft_server.coordinator",
        "fedpeft_server.run.federation",
        "fedpeft_client.process.agent",
        "fedpeft_client.process.coordinator_services",
        "fedpeft_client.process.worker",
        "fedpeft_client.training.device_stores",
        "fedpeft.testing.network",
        "fedpeft.testing.runs",
        "fedpeft.testing.trainers",
    ),
    # None of fedpeft's, which looks for plug-ins when it is imported.
    "libraries": ("torch", "transformers.models.bert.modeling_bert", "transformers.trainer", "peft.auto", "flwr.app"),
}
HASH_SEED = "1" if os.environ.get("PYTHONHASHSEED") == "7" else "7"
OFFERED = "FEDPEFT_TESTS_FORK_SERVERS"
"""In the environment of workers: the path of the socket on which servers are asked for by name."""


@cache
def _own(name: str) -> ForkServer:
    """This process's, which ends with it, under another seed of hashes than the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", HASH_SEED)
        return ForkServer(PRELOADED[name], what="tests")


@cache
def _asked(name: str) -> socket.socket:
    """The line on which a server is asked for processes."""
    path = os.environ.get(OFFERED)
    if path is None:
        return socket.socket(fileno=os.dup(_own(name).descriptor))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(path)
        line.send(name.encode())
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        if not descriptors:
            raise ConnectionResetError(f"Expected the fork server {name} of this test session, found none.")
        (descriptor,) = descriptors
    return socket.socket(fileno=descriptor)


def offer() -> None:
    """Have the workers that this process starts from here on share its servers; each is started when one is wanted."""
    folder = tempfile.mkdtemp(prefix="fedpeft-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "fork-servers")
    offered = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    offered.bind(path)
    offered.listen()
    os.environ[OFFERED] = path
    threading.Thread(target=_hand_out, args=(offered,), daemon=True).start()


def _hand_out(offered: socket.socket) -> None:
    """For ever: a server ends with the thread that started it."""
    while True:
        line, _ = offered.accept()
        with line:
            try:
                socket.send_fds(line, [b"!"], [_own(line.recv(64).decode()).descriptor])
            except (OSError, KeyError):  # this worker is gone, or gets none and says so; the others go on
                traceback.print_exc()


def fork_command(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str], output: int, server: str = "commands"
) -> ForkedProcess:
    """``python -m module ARGUMENTS``, of a module on the environment's PYTHONPATH.

    Args:
        module: run as ``__main__``.
        arguments: its command line.
        environment: all of it.
        output: descriptor of both output streams.
        server: what is imported already, see ``PRELOADED``.
    """
    return _ask(_asked(server), module, arguments, environment=environment, output=output)


def start_command(
    *arguments: str | Path, output: int, environment: Mapping[str, str] | None = None, server: str = "commands"
) -> ForkedProcess:
    """``fedpeft ARGUMENTS`` in the test's working directory.

    Args:
        arguments: the command line after ``fedpeft``.
        output: descriptor of both output streams.
        environment: besides that of the test; PYTHONPATH comes before it.
        server: see ``fork_command``.
    """
    more = dict(environment or {})
    path = [str(Path(__file__).parent), *filter(None, [more.pop("PYTHONPATH", ""), *sys.path])]
    whole = {**os.environ, "PYTHONHASHSEED": HASH_SEED, **more, "PYTHONPATH": os.pathsep.join(path)}
    words = [str(Path.cwd()), *map(str, arguments)]
    return fork_command("a_command", words, environment=whole, output=output, server=server)


def forking() -> dict[str, str]:
    """The environment in which the product forks its children from the tests' server, as below `fedpeft local up`."""
    return {ENVIRONMENT: named(_asked("commands").fileno())}


class SharedServer(ForkServer):
    """In the place of a server of a local federation's own. What it forked ends with the federation, which ends it."""

    def __init__(self, modules: Sequence[str], *, what: str, output: int = 2) -> None:
        self._asked = _asked("commands")

    def close(self) -> None:
        """Others go on."""
