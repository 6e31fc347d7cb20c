"""What one enrolled device that attacks costs a coordinator and the rounds of the others.

    python benchmarks/deployed/insiders.py             about a minute

Coordinator and devices are processes on loopback as in `deployment.py`, which calls ``attacks``; the attacker is
`tests/attacks/insiders.py`, with the keys of a device. One JSON object on the last line of stdout.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "e2e" / "toy", ROOT / "tests" / "attacks"):
    sys.path.insert(0, str(folder))
CROWD = 40
FLOODERS = 2
"""Threads; more would measure what the attacker takes of this machine's cores."""


def attacks(federation, *, rounds: int) -> dict[str, float]:
    """Each attack beside honest requests; then rounds without and beside requests without end."""
    from insiders import Insider
    from strangers import h2_frame, header_field, held, many_descriptors, pour

    many_descriptors()
    calm = seconds_a_round(federation, rounds)
    # Its name is after the run's devices; it never says who it is, so it is enrolled when the calm rounds are over.
    mallory, honest = Insider(federation, "mallory"), Insider(federation, "honest")
    for _ in range(10):
        honest.pull()
    begin, more = h2_frame(1, 0, 1, header_field(b":path", b"/x")), h2_frame(9, 0, 1, header_field(b"x", b"y") * 1000)

    def bodies() -> None:
        with crowd_of_bodies(mallory, 6 * 2**20), crowd_of_bodies(mallory, 250 * 1024):
            time.sleep(1.0)

    def headers() -> None:
        for _ in range(8):
            with contextlib.suppress(OSError), mallory.h2() as line:
                pour(line, begin, more, seconds=3.0)

    def idle() -> None:
        with held(mallory.h2, 200):
            time.sleep(0.5)

    found: dict[str, float] = {}
    for name, attack in (("bodies", bodies), ("headers", headers), ("idle", idle)):
        grown, p99 = costs(federation, honest.pull, attack)
        found |= {f"insider_{name}_mb": grown, f"insider_{name}_p99_s": p99}
    with flood(mallory):
        beside = seconds_a_round(federation, rounds)
    return found | {"insider_flood_round_ratio": beside / calm}


def seconds_a_round(federation, rounds: int) -> float:
    """The median, without the first, which wakes everything, and the last, which only evaluates."""
    job = federation.finished(federation.submit(rounds=rounds), within_s=120.0 + 10 * rounds)
    if job.state.value != "finished":
        raise SystemExit(f"Expected the run to finish, found it {job.state.value}: {job.reason}")
    return median(row["seconds"] for row in federation.rows(job)[1:-1])


def costs(federation, ask: Callable[[], object], attack: Callable[[], None]) -> tuple[float, float]:
    """MiB that the coordinator's peak grew by, and the 99th of a hundred honest requests in seconds."""
    from strangers import Asking, peak_mb, reset_peak, rss_mb

    pid = federation.processes["coordinator"].pid
    reset_peak(pid)
    before = rss_mb(pid)
    with Asking(ask) as asking:
        attack()
    return peak_mb(pid) - before, asking.p99_s


@contextlib.contextmanager
def crowd_of_bodies(mallory, size: int) -> Iterator[None]:
    """So many bodies that lack their last byte."""
    lines = []

    def begin() -> None:
        with contextlib.suppress(OSError):
            line = mallory.line()
            lines.append(line)
            line.settimeout(2.0)
            line.sendall(mallory.head("push-object", size) + bytes(size - 1))

    threads = [threading.Thread(target=begin) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        yield
    finally:
        for line in lines:
            line.close()


@contextlib.contextmanager
def flood(mallory) -> Iterator[None]:
    """Requests as fast as they are answered; none that would say that the device waits for work."""
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ConfirmMessageReceivedResponse

    from fedpeft.flower.fleet_client import RequestRefused, Unanswered

    done = threading.Event()

    def ask() -> None:
        client, request = mallory.client(), ConfirmMessageReceivedRequest(node=mallory.node)
        while not done.is_set():
            with contextlib.suppress(RequestRefused, Unanswered):
                client.ask(request, ConfirmMessageReceivedResponse)
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(FLOODERS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(5.0)  # beyond what it may ask for at once
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """A federation of three, attacked by a fourth."""
    from federation import ToyFederation

    os.environ["TOY_DEVICES"] = "ward-a,ward-b,ward-c,ward-d"  # another part may have named its own
    os.environ.pop("TOY_WIDTH", None)
    federation = ToyFederation(folder / "insiders")
    try:
        federation.up()
        federation.admit([f"ward-{letter}" for letter in "abc"])
        return attacks(federation, rounds=4 if quick else 20)
    finally:
        federation.close()


def main() -> None:
    """Alone."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), quick="--quick" in sys.argv)))


if __name__ == "__main__":
    main()
