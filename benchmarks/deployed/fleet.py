"""A deployed coordinator's cost per round as the fleet grows: real TLS, real requests, light devices.

    python benchmarks/deployed/fleet.py            8, 30, 100 and 200 devices: about twelve minutes
    python benchmarks/deployed/fleet.py --quick    4 and 8 devices: under a minute

The coordinator is the process of a deployment. The devices are real ones too (keys, certificates, agents, secure
sum), but they share processes, at least two and fifty in one at most, and none has a second process for training: a
machine of two cores holds no two hundred interpreters. Training takes no time. So a round's wall seconds are the
coordinator's and all devices' work on one machine; the coordinator's CPU seconds and memory are what a coordinator of
its own would pay, ``device_cpu_s_a_round`` what a device pays.

Progress goes to stderr, one JSON object on the last line of stdout, kept in
benchmarks/results/deployment_fleet.json. ``exponent`` is the slope of log CPU over log devices, by least squares.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "tests" / "e2e" / "toy", ROOT / "tests" / "attacks"):
    sys.path.insert(0, str(folder))
RESULTS = ROOT / "benchmarks" / "results" / "deployment_fleet.json"
PARAMETERS = 74_498
"""Of the airline demo's adapter, about."""
A_PROCESS = 50
STAGE_S = 300
"""A deadline: a fleet on one busy machine is slow, and nobody is to be left out for it."""


class Within:
    """Stands where an agent has its second process: the same handlers, called."""

    def __init__(self, home) -> None:
        import toy_worker

        self._handlers = toy_worker.begun([str(home.path)], toy_worker.held)

    def ask(self, name: str, payload: bytes = b"", *, within_s: float | None = None) -> bytes:
        """See ``fedpeft.child.Child``."""
        return self._handlers[name](payload)

    def rest(self) -> bool:
        """Nothing to put to rest."""
        return False

    def kill(self) -> None:
        """Nothing to end."""

    close = kill


def serve(folders: list[Path]) -> None:
    """These devices, each in a thread, until the process is killed."""
    from fedpeft.clock import SystemClock
    from fedpeft_client.home import DeviceHome
    from fedpeft_client.process.agent import Agent
    from fedpeft_client.process.coordinator_services import CoordinatorServices

    class NoBase(CoordinatorServices):
        def fetch(self, digest: str) -> None:
            """The toy worker has its base with it."""

    for folder in folders:
        home = DeviceHome(folder)
        agent = Agent(home, NoBase(home, SystemClock()), worker="toy_worker")
        agent._child = Within(home)
        threading.Thread(target=agent.run, daemon=True).start()
    threading.Event().wait()


def rounds_of(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    """Rounds of so many devices, in an empty folder."""
    names = [f"ward-{number}" for number in range(devices)]
    os.environ["TOY_DEVICES"], os.environ["TOY_WIDTH"] = ",".join(names), str(PARAMETERS)
    import federation as toy
    from federation import ToyFederation
    from strangers import peak_mb

    toy.RUN = toy.RUN.replace("fit_deadline_s = 40", f"fit_deadline_s = {STAGE_S}").replace(
        "stage_deadline_s = 20", f"stage_deadline_s = {STAGE_S}"
    )
    folder.mkdir()
    federation = ToyFederation(folder)
    fleets: list[subprocess.Popen[bytes]] = []
    try:
        coordinator = psutil.Process(federation.up().pid)
        for name in names:
            federation.enrol(name)
            time.sleep(0.35)  # one address may not ask more often
        each = min(A_PROCESS, math.ceil(devices / 2))
        for begin in range(0, devices, each):
            homes = [str(folder / name) for name in names[begin : begin + each]]
            with (folder / f"fleet-{begin}.log").open("wb") as log:
                command = [sys.executable, __file__, "--serve", *homes]
                fleets.append(subprocess.Popen(command, stdout=log, stderr=log))
        federation.until(lambda: len(federation.online()) == devices, "the devices", 60.0 + devices)
        job = federation.submit(rounds=rounds, least=devices)
        federation.until(lambda: len(federation.rows(job)) >= 1, "the first round", 60.0 + 2 * devices)
        everybody = [coordinator, *(psutil.Process(fleet.pid) for fleet in fleets)]
        before = [cpu_s(one) for one in everybody]
        federation.until(lambda: len(federation.rows(job)) >= rounds, "the rounds", 60.0 + 2 * devices * rounds)
        # While all its processes are there.
        spent, *theirs = (cpu_s(one) - was for one, was in zip(everybody, before, strict=True))
        ended = federation.finished(job, within_s=60.0 + 2 * devices)
        if ended.state.value != "finished":
            raise SystemExit(f"the run ended {ended.state.value}: {ended.reason}")
        rows = federation.rows(job)[1:-1]  # the first wakes everything, the last only evaluates
        return {
            "devices": devices,
            "round_p50_s": round(median(row["seconds"] for row in rows), 3),
            "coordinator_cpu_s_a_round": round(spent / len(rows), 3),
            "device_cpu_s_a_round": round(sum(theirs) / len(rows) / devices, 3),
            "coordinator_peak_mb": round(peak_mb(coordinator.pid), 1),
            "load": os.getloadavg()[0],
        }
    finally:
        for fleet in fleets:
            fleet.kill()
            fleet.wait()
        federation.close()


def measure(sizes: tuple[int, ...], *, rounds: int) -> dict[str, Any]:
    """Fleets of these sizes, and how the coordinator's CPU grows from the first to the last."""
    found = []
    for devices in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(rounds_of(Path(folder) / "fleet", devices, rounds))
        print(found[-1], file=sys.stderr, flush=True)
    cpu = [one["coordinator_cpu_s_a_round"] for one in found]
    return {"fleets": found, "exponent": round(float(np.polyfit(np.log(sizes), np.log(cpu), 1)[0]), 2)}


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def main() -> None:
    """One process of the benchmark, or the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", default="8,30,100,200", help="devices, separated by commas")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve([Path(text) for text in chosen.serve])
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sizes = (4, 8) if chosen.quick else tuple(int(text) for text in chosen.sizes.split(","))
    figures = measure(sizes, rounds=3 if chosen.quick else chosen.rounds)
    if not chosen.quick:
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
