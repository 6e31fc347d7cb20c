"""`fedpeft coordinator up` with a model process that needs no torch."""

import signal
import sys
from pathlib import Path

from fedpeft.errors import FedpeftError
from fedpeft.logs import log_to_stderr


def up() -> None:
    """As the command does it."""
    log_to_stderr()

    from fedpeft_server.coordinator import Coordinator
    from fedpeft_server.home import CoordinatorHome

    try:
        coordinator = Coordinator(CoordinatorHome(Path(sys.argv[1])), model_process="toy_model_process")
    except FedpeftError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    signal.signal(signal.SIGTERM, lambda *_: coordinator.stop())
    coordinator.start()
    try:
        coordinator.work()
    except FedpeftError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    finally:
        coordinator.close()


if __name__ == "__main__":
    up()
