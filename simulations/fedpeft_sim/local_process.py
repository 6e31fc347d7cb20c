"""One process of a local federation: its coordinator, a device, or the part of a device that trains.

Run by ``fedpeft_sim.local_federation`` as ``python -m fedpeft_sim.local_process PARENT ROLE HOME``. The processes are
those of a deployment, with two differences: they end with whoever started them, and devices round by a seed, as
simulated ones do, so that the adapter is that of `fedpeft simulate` to the bit.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fedpeft.entropy import Entropy, seeded_entropy
from fedpeft.errors import FedpeftError
from fedpeft.logs import log_to_stderr
from fedpeft.parent_death import die_with_parent

__all__ = ["SEED_FILE", "begun_by_seed", "main"]

SEED_FILE = "rounding.seed"
"""In a device's home: the seed of the run whose rounding it repeats."""


def _coordinator(home: Path) -> None:
    from fedpeft_server.coordinator import Coordinator
    from fedpeft_server.home import CoordinatorHome

    coordinator = Coordinator(CoordinatorHome(home))
    signal.signal(signal.SIGTERM, lambda *_: coordinator.stop())
    try:
        coordinator.start()
        coordinator.work()
    finally:
        coordinator.close()


def _device(home: Path) -> None:
    from fedpeft.clock import SystemClock
    from fedpeft_client.home import DeviceHome
    from fedpeft_client.process.agent import Agent
    from fedpeft_client.process.coordinator_services import CoordinatorServices

    where = DeviceHome(home)
    device = Agent(where, CoordinatorServices(where, SystemClock()), worker="fedpeft_sim.local_worker")
    signal.signal(signal.SIGTERM, lambda *_: device.stop())
    device.run()


def begun_by_seed(arguments: Sequence[str]) -> Mapping[str, Callable[[bytes], bytes]]:
    """As ``fedpeft_client.process.worker.begun``, rounding by the seed in the device's home."""
    from fedpeft_client.home import DeviceHome
    from fedpeft_client.process.worker import begun

    home = DeviceHome(Path(arguments[0]))
    seed, name = int((home.path / SEED_FILE).read_text(encoding="utf-8")), home.enrolment().device
    return begun(arguments, rounding=partial(_rounding, seed, name))


def _rounding(seed: int, name: str, _run_id: str, round_id: int) -> Entropy:
    return seeded_entropy(seed, "rounding", name, round_id)


def main(arguments: Sequence[str]) -> int:
    """One coordinator or device until SIGTERM; returns the exit code.

    Args:
        arguments: the parent's process id, ``coordinator`` or ``device``, the home.
    """
    parent, role, home = arguments
    log_to_stderr()
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends all in order
    try:
        (_coordinator if role == "coordinator" else _device)(Path(home))
    except FedpeftError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
