"""`fedpeft ARGUMENTS` in processes that are forked from one with the imports done: six CPU seconds less each."""

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fedpeft.fork_server import ForkedProcess, ForkServer

__all__ = ["start_command"]

PRELOADED = (
    "fedpeft.cli",
    "fedpeft.api.kept",
    "fedpeft.api.simulation",
    "fedpeft_client.serving.server",
    "fedpeft_server.run.run_view",
    "fedpeft_sim.live",
    "fedpeft_sim.outcome",
)


@cache
def _server() -> ForkServer:
    """This test process's, which ends with it."""
    return ForkServer(PRELOADED, what="tests")


def start_command(*arguments: str | Path, output: int, environment: Mapping[str, str] | None = None) -> ForkedProcess:
    """Start a command in the folder where the tests run.

    Args:
        arguments: the command line after ``fedpeft``.
        output: descriptor of both output streams.
        environment: besides that of the tests.
    """
    path = os.pathsep.join([str(Path(__file__).parent), *(entry for entry in sys.path if entry)])
    whole = {**os.environ, **(environment or {}), "PYTHONPATH": path}
    return _server().start("a_command", [*map(str, arguments)], environment=whole, output=output)
