"""What strangers cost a coordinator that works: header floods, idle connections, refused requests and applications.

    python benchmarks/deployed/floods.py             about two minutes
    python benchmarks/deployed/floods.py --quick     about one

Coordinator and devices are processes on loopback as in `deployment.py`, which calls ``attacks``; the attacks are of
`tests/attacks/strangers.py`. One JSON object on the last line of stdout.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "e2e" / "toy", ROOT / "tests" / "attacks"):
    sys.path.insert(0, str(folder))
PULL = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n"
DAY_S = 86400.0


def attacks(federation, *, quick: bool) -> dict[str, Any]:
    """Each attack beside honest requests; the federation's devices are connected."""
    from strangers import many_descriptors

    many_descriptors()
    return (
        headers(federation, seconds=4.0 if quick else 15.0)
        | idle(federation, each=200 if quick else 1500)
        | floods(federation, rounds=6 if quick else 20)
    )


def honest(federation) -> None:
    """A request that is answered by the gateway, whoever asks."""
    from strangers import tls

    with tls(federation.settings.fleet_port, federation.home.ca_certificate) as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        if not one.recv(4096):
            raise OSError("no answer")


def headers(federation, *, seconds: float) -> dict[str, float]:
    """Six connections with header lines without end, to the gateway."""
    from strangers import Asking, peak_mb, pour, reset_peak, rss_mb, tls

    pid = federation.processes["coordinator"].pid
    settings, ca = federation.settings, federation.home.ca_certificate
    end = time.monotonic() + seconds

    def attack() -> None:
        while time.monotonic() < end:
            with tls(settings.fleet_port, ca) as one:
                pour(one, PULL, b"X1: \r\n", seconds=seconds)

    reset_peak(pid)
    before = rss_mb(pid)
    threads = [threading.Thread(target=attack, daemon=True) for _ in range(6)]
    with Asking(partial(honest, federation)) as asking:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"headers_attack_mb": peak_mb(pid) - before, "headers_attack_p99_s": asking.p99_s}


def idle(federation, *, each: int) -> dict[str, float]:
    """So many connections to each port, which begin a handshake or finish it and say nothing more."""
    import socket

    from strangers import Asking, half_tls, held, idle_h2, peak_mb, reset_peak, rss_mb

    pid, settings, ca = federation.processes["coordinator"].pid, federation.settings, federation.home.ca_certificate
    kinds = (
        partial(half_tls, settings.fleet_port),
        partial(half_tls, settings.service_port),
        partial(idle_h2, settings.enrol_port, ca),
        lambda: socket.create_connection(("127.0.0.1", settings.metrics_port), 5.0),
    )
    reset_peak(pid)
    before = rss_mb(pid)
    with Asking(partial(honest, federation)) as asking:
        for kind in kinds:
            with held(kind, each):
                time.sleep(0.5)
    return {"idle_connections_all_ports_mb": peak_mb(pid) - before, "idle_connections_p99_s": asking.p99_s}


def floods(federation, *, rounds: int) -> dict[str, float]:
    """Refused requests from the devices' own address during a run, then refused applications for a while."""
    from test_strangers import Flood, flooded

    def seconds() -> float:
        job = federation.finished(federation.submit(rounds=rounds), within_s=60.0 + 10 * rounds)
        return median(row["seconds"] for row in federation.rows(job)[1:-1])

    calm = seconds()
    with Flood(federation):
        time.sleep(4.0)  # beyond the budget of the address
        under_flood = seconds()
    before, begun = federation.home.audit.stat().st_size, time.monotonic()
    flooded(federation, 1000)
    grown, took = federation.home.audit.stat().st_size - before, time.monotonic() - begun
    # One record for each period in which somebody was refused is all that can come.
    from fedpeft_server.enrolment.refusals import PERIOD_S

    a_day = grown / took * DAY_S + DAY_S / PERIOD_S * RECORD_BYTES
    return {
        "stranger_flood_round_ratio": under_flood / calm,
        "audit_bytes_per_day_of_strangers": a_day,
        "calm_round_p50_s": calm,
    }


RECORD_BYTES = 450
"""Of the audit record about a period's strangers, about."""


def main() -> None:
    """A federation of four, attacked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from federation import ToyFederation
    from strangers import rss_mb

    with tempfile.TemporaryDirectory() as folder:
        federation = ToyFederation(Path(folder))
        try:
            federation.up()
            federation.admit([f"ward-{letter}" for letter in "abcd"])
            found = attacks(federation, quick=chosen.quick)
            found["coordinator_after_mb"] = rss_mb(federation.processes["coordinator"].pid)
        finally:
            federation.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
