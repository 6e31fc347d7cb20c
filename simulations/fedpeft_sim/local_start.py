"""How the processes of a local federation are started: forked from one that has loaded the models' libraries."""

import os
import subprocess
import sys
from pathlib import Path

from fedpeft.fork_server import ForkedProcess, ForkServer, can_fork

__all__ = ["LocalProcess", "LocalStart"]

LocalProcess = subprocess.Popen[bytes] | ForkedProcess
PROGRAM, COORDINATOR = "fedpeft_sim.local_process", "coordinator"
PRELOADED = (
    "fedpeft_client.process.agent",
    "fedpeft_client.process.coordinator_services",
    "fedpeft_client.process.worker",
    "fedpeft_client.training.site_trainer",
    "fedpeft.export",
)
"""What they import, torch and transformers among it: once, see ``fedpeft.fork_server``."""


class LocalStart:
    """Where the system cannot fork safely, each is a new interpreter. Close it: what it forked ends then.

    Args:
        logs: folder of ``NAME.log``.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._server: ForkServer | None = None
        if can_fork():
            with (logs / "fork_server.log").open("ab") as log:
                self._server = ForkServer(PRELOADED, what=str(logs.absolute()), output=log.fileno())

    def start(self, name: str, role: str, home: Path) -> LocalProcess:
        """A process of ``local_process``."""
        arguments = (role, str(home.absolute()))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        with (self._logs / f"{name}.log").open("ab") as log:
            if self._server is not None and role != COORDINATOR:
                given = ("{parent}", *arguments)
                return self._server.start(PROGRAM, given, environment=environment, output=log.fileno())
            # The coordinator loads no torch: it is up before the server has, and has its model process forked later.
            inherited = [] if self._server is None else [self._server.descriptor]
            asks = {} if self._server is None else self._server.environment
            return subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | asks,
                pass_fds=inherited,
                start_new_session=True,
            )

    def close(self) -> None:
        """No more is started."""
        if self._server is not None:
            self._server.close()
