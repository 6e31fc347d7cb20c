"""A deployed federation, measured: a round's overhead beside stock Flower's, the base's way, memory under load.

    python benchmarks/deployment.py            about ten minutes
    python benchmarks/deployment.py --quick    four devices, three rounds, 128 MiB of base; no stock Flower

Coordinator and devices are processes on loopback with the real protocol (TLS, gateway, enrolment, four exchanges,
secure sum, durable commits); training takes no time, so a round's seconds are its overhead. Stock Flower does FedAvg
over an array of the same size in the same set-up, one exchange a round and neither TLS nor secure aggregation
(`deployed/stock_flower.py`). The base is measured by `deployed/base_distribution.py`, a new user's first round by
`deployed/demo.py`, fleets of light devices by `deployed/fleet.py`, enrolled devices that attack by
`deployed/insiders.py`, what an upload costs by `deployed/uploads.py`.
`--only PART ...` measures these parts alone and keeps what the file has of the others.

Progress goes to stderr, one JSON object on the last line of stdout, kept in benchmarks/results/deployment.json.
"""

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tests" / "e2e" / "toy", ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))
RESULTS = ROOT / "benchmarks" / "results" / "deployment.json"
PARAMETERS = 74_498
"""Of the airline demo's adapter, about."""
HEAVY = 2**19
"""Parameters whose masked upload is 2 MiB at 32 bits."""
IDLE_SOCKETS = 500


def overhead(
    folder: Path, *, devices: int, rounds: int, parameters: int, crowd: int, quick: bool = False, attacked: bool = False
) -> dict[str, Any]:
    """Rounds that train nothing, with ``crowd`` more devices that only wait."""
    names = [f"ward-{number}" for number in range(devices)]
    os.environ["TOY_DEVICES"], os.environ["TOY_WIDTH"] = ",".join(names), str(parameters)
    from deployed import floods
    from federation import ToyFederation

    folder.mkdir()
    federation = ToyFederation(folder)
    waiting = None
    try:
        federation.up()
        pid = federation.processes["coordinator"].pid
        federation.admit(names)
        if crowd:
            waiting = subprocess.Popen(
                [sys.executable, __file__, "--crowd", str(federation.home.path), str(folder), str(crowd)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert waiting.stdout is not None
            if waiting.stdout.readline().strip() != "ready":
                raise SystemExit("the crowd did not connect")
            say(f"{crowd} more devices wait")
        idle = rss_mb(pid)
        job = federation.finished(federation.submit(rounds=rounds, least=devices), within_s=60.0 + 30 * rounds)
        if job.state.value != "finished":
            raise SystemExit(f"the run ended {job.state.value}: {job.reason}")
        rows = federation.rows(job)[:-1]  # the last row only evaluates
        seconds = [row["seconds"] for row in rows]
        say(f"{devices} devices, {parameters} parameters: {', '.join(f'{one:.2f}' for one in seconds)} s")
        found = {
            "seconds": seconds,
            "uploads_per_s": devices / median(seconds),
            "idle_mb": idle,
            "peak_mb": peak_mb(pid),
        }
        if not crowd:
            found |= hostile(federation, pid)
            found["attacks"] = floods.attacks(federation, quick=quick) if attacked else {}
        return found
    finally:
        if waiting is not None:
            waiting.kill()
            waiting.wait()
        federation.close()


def hostile(federation, pid: int) -> dict[str, float]:
    """A body of 128 MiB without an end in sight, then many sockets that say nothing; what the coordinator pays."""
    before, port = peak_mb(pid), federation.settings.fleet_port
    trust = ssl.create_default_context(cafile=str(federation.home.ca_certificate))
    with (
        socket.create_connection(("localhost", port)) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as one,
    ):
        sent = 0
        try:
            one.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 134217728\r\n\r\n")
            while sent < 2**27:
                sent += one.send(bytes(2**16))
        except OSError:
            pass  # it hung up, as it should
    body = peak_mb(pid) - before
    sockets = [socket.create_connection(("localhost", port)) for _ in range(IDLE_SOCKETS)]
    time.sleep(1.0)
    begun = time.monotonic()
    ready = federation.ready()
    answered = time.monotonic() - begun
    grown = peak_mb(pid) - before
    for one in sockets:
        one.close()
    say(f"hostile body: +{body:.1f} MiB for {sent / 2**20:.1f} MiB sent; {IDLE_SOCKETS} idle sockets: +{grown:.1f} MiB")
    return {"hostile_mb": grown, "readyz_s": answered if ready else float("inf")}


def crowd(home: Path, folder: Path, count: int) -> None:
    """Enrols so many devices and holds their wake streams open until it is killed."""
    from federation import enrol_device

    from fedpeft_client.connection.grpc_client import Link
    from fedpeft_server.home import CoordinatorHome

    def wait(device) -> None:
        with Link.of_home(device) as link:
            for _ in link.wakes():
                opened.release()

    coordinator, opened = CoordinatorHome(home), threading.Semaphore(0)
    for number in range(count):
        device = enrol_device(coordinator, folder / f"idle-{number}", f"idle-{number}")
        threading.Thread(target=wait, args=(device,), daemon=True).start()
        time.sleep(0.35)  # one address may not ask more often
    print("ready", flush=True)
    threading.Event().wait()


def rss_mb(pid: int) -> float:
    """A process's resident set now, MiB."""
    return _status(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    """A process's largest resident set so far, MiB."""
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def rounds(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Rounds without training."""
    devices, count = (4, 3) if quick else (8, 12)
    ours = overhead(folder / "ours", devices=devices, rounds=count, parameters=PARAMETERS, crowd=0, quick=quick)
    return {
        "round_overhead_p50_s": median(ours["seconds"]),
        "coordinator_peak_mb": ours["peak_mb"],
        "hostile_mb": ours["hostile_mb"],
        "readyz_under_idle_sockets_s": ours["readyz_s"],
        "devices": devices,
        "parameters": PARAMETERS,
        "rounds": {"ours": ours["seconds"]},
    }


def rest(folder: Path, *, quick: bool) -> dict[str, Any]:
    """A device that nothing was asked of for a while: its memory, and what the next run's first round waits for it."""
    os.environ["TOY_DEVICES"], os.environ["TOY_WIDTH"] = "ward-0,ward-1,ward-2", str(PARAMETERS)
    from federation import ToyFederation

    from fedpeft_client.site import Site, SiteData, SiteLimits

    federation = ToyFederation(folder)
    try:
        federation.up()
        site = federation.enrol("ward-0").site
        site.write_text(Site(data=SiteData(source="none.jsonl"), limits=SiteLimits(rest_after_s=1.0)).to_toml())
        device = psutil.Process(federation.device("ward-0").pid)
        federation.admit(["ward-1", "ward-2"])
        federation.finished(federation.submit(rounds=1))
        federation.until(lambda: not device.children(), "the training process to rest")
        found = {"device_at_rest_mb": rss_mb(device.pid)}
        job = federation.finished(federation.submit(rounds=2))
        first, second, *_ = federation.rows(job)
        return found | {"device_wakes_s": first["seconds"] - second["seconds"]}
    finally:
        federation.close()


def strangers(folder: Path, *, quick: bool) -> dict[str, Any]:
    """What strangers cost meanwhile; see `deployed/floods.py`."""
    devices = 4 if quick else 8
    found = overhead(
        folder / "ours", devices=devices, rounds=2, parameters=PARAMETERS, crowd=0, quick=quick, attacked=True
    )
    return dict(found["attacks"])


def together(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Two runs at once; see `deployed/two_runs.py`."""
    from deployed import two_runs

    os.environ["TOY_WIDTH"] = str(PARAMETERS)
    return two_runs.two_runs(folder, quick=quick)


def stock(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Stock Flower's rounds."""
    from deployed import stock_flower

    seconds = stock_flower.rounds(folder, devices=8, count=5, size=PARAMETERS)
    say(f"stock Flower: {', '.join(f'{one:.2f}' for one in seconds)} s")
    return {"stock_flower_p50_s": median(seconds), "rounds": {"stock": seconds}}


def loaded(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Uploads of 2 MiB, and 200 more devices that wait."""
    heavy = overhead(folder / "heavy", devices=8, rounds=10, parameters=HEAVY, crowd=200)
    return {
        "loaded_peak_mb": heavy["peak_mb"],
        "loaded_uploads_per_s": heavy["uploads_per_s"],
        "rounds": {"loaded": heavy["seconds"]},
    }


def fleets(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Light devices; see `deployed/fleet.py`."""
    from deployed import fleet

    found = fleet.measure((4, 8) if quick else (8, 30, 100, 200), rounds=3 if quick else 4)
    return {"fleets": found["fleets"], "fleet_cpu_exponent": found["exponent"]}


def uploads(folder: Path, *, quick: bool) -> dict[str, Any]:
    """See `deployed/uploads.py`."""
    from deployed import uploads as sent

    return sent.measure(folder, quick=quick)


def insiders(folder: Path, *, quick: bool) -> dict[str, Any]:
    """See `deployed/insiders.py`."""
    from deployed import insiders as attacking

    return dict(attacking.measure(folder, quick=quick))


def first_round(folder: Path, *, quick: bool) -> dict[str, Any]:
    """See `deployed/demo.py`."""
    from deployed import demo

    return {"first_round_s": demo.first_round(folder)["first_round_s"]}


def base(folder: Path, *, quick: bool) -> dict[str, Any]:
    """See `deployed/base_distribution.py`."""
    from deployed import base_distribution

    return base_distribution.measure(folder, quick=quick)


PARTS = {
    part.__name__: part
    for part in (rounds, rest, strangers, insiders, together, stock, loaded, fleets, uploads, first_round, base)
}
QUICK = ("rounds", "rest", "strangers", "uploads", "base")


def measure(folder: Path, parts: Sequence[str], found: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """These parts, each in an empty folder, in place of what was found of them before."""
    load = dict(found.get("load", {}))
    for name in parts:
        (folder / name).mkdir()
        new = PARTS[name](folder / name, quick=quick)
        load[name] = round(os.getloadavg()[0], 1)
        kept = found.get("rounds", {}) | new.get("rounds", {})
        found = found | new | {"rounds": kept}
    return found | {"load": load}


def main() -> None:
    """One process of the benchmark, or the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--crowd", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.crowd:
        crowd(Path(chosen.crowd[0]), Path(chosen.crowd[1]), int(chosen.crowd[2]))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    before = json.loads(RESULTS.read_text()) if chosen.only and not chosen.quick else {}
    parts = chosen.only or (QUICK if chosen.quick else tuple(PARTS))
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), parts, before, quick=chosen.quick)
    if not chosen.quick:
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
