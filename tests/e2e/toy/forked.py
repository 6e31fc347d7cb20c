"""Toy processes are forked from one that has done the imports, which are most of what a new interpreter costs.

So are their workers and model processes, which the product starts: by the fork server that `fedpeft local up` has.
"""

from collections.abc import Mapping
from pathlib import Path

from fedpeft.fork_server import ForkedProcess
from tests.forked_commands import fork_command

__all__ = ["start_toy"]


def start_toy(script: Path, *arguments: object, environment: Mapping[str, str], log: Path) -> ForkedProcess:
    """``python SCRIPT ARGUMENTS``, of a script in a folder on the environment's PYTHONPATH.

    Args:
        script: run as ``__main__``.
        arguments: its command line.
        environment: all of it.
        log: where it writes on, both streams.
    """
    with log.open("ab") as file:
        output, words = file.fileno(), [*map(str, arguments)]
        return fork_command(script.stem, words, environment=environment, output=output, server="toys")
