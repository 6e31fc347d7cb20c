"""`fedpeft client run` with a worker that needs no torch."""

import signal
import sys
from pathlib import Path

from fedpeft.clock import SystemClock
from fedpeft.errors import FedpeftError
from fedpeft.logs import log_to_stderr
from fedpeft_client.home import DeviceHome
from fedpeft_client.process.agent import Agent
from fedpeft_client.process.coordinator_services import CoordinatorServices


class NoBase(CoordinatorServices):
    """The toy worker has its base with it."""

    def fetch(self, digest: str) -> None:
        """Nothing to fetch."""


log_to_stderr()
home = DeviceHome(Path(sys.argv[1]))
try:
    device = Agent(home, NoBase(home, SystemClock()), worker="toy_worker")
    signal.signal(signal.SIGTERM, lambda *_: device.stop())
    device.run()
except FedpeftError as error:
    print(error, file=sys.stderr)  # noqa: T201
    sys.exit(error.exit_code)
