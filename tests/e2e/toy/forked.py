"""Toy processes are forked from one that has done the imports, which are most of what a new interpreter costs.

So are their workers and model processes, which the product starts: by the fork server that `fedpeft local up` has.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fedpeft.fork_server import ForkedProcess, ForkServer

__all__ = ["start_toy"]

PRELOADED = (
    "fedpeft_server.coordinator",
    "fedpeft_server.run.federation",
    "fedpeft_client.process.agent",
    "fedpeft_client.process.coordinator_services",
    "fedpeft_client.process.worker",
    "fedpeft_client.training.device_stores",
    "fedpeft.testing.network",
    "fedpeft.testing.runs",
    "fedpeft.testing.trainers",
)


@cache
def server() -> ForkServer:
    """This test process's, which ends with it."""
    return ForkServer(PRELOADED, what="tests")


def start_toy(script: Path, *arguments: object, environment: Mapping[str, str], log: Path) -> ForkedProcess:
    """``python SCRIPT ARGUMENTS``, of a script in a folder on the environment's PYTHONPATH.

    Args:
        script: run as ``__main__``.
        arguments: its command line.
        environment: all of it.
        log: where it writes on, both streams.
    """
    with log.open("ab") as file:
        return server().start(script.stem, [*map(str, arguments)], environment=environment, output=file.fileno())
