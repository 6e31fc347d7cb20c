"""What an upload of 2 MiB costs the coordinator: its listener, gateway and Flower state, sent to by light devices.

    python benchmarks/deployed/uploads.py [--quick]

The server is the public part of a coordinator in a process of its own: TLS, the gateway, Flower's handlers and state.
The senders share a second process; each has a key and signs, has its answer ready, and never waits for work, so that
the server is what is measured. ``server_cpu_s`` is the server's CPU seconds per upload, by which one core is limited to
``uploads_per_s_by_cpu``; ``uploads_per_s`` is what both processes reach on this machine.
Progress goes to stderr, one JSON object to stdout; `benchmarks/deployment.py` calls ``measure``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SENDERS, UPLOAD_BYTES = 8, 2 * 2**20
WITHIN_S = 300.0


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """The figures, in an empty folder."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_client.enrolment.keys import new_device_key
    from fedpeft_server.enrolment.certificate_authority import initialise
    from fedpeft_server.home import CoordinatorHome, Settings

    home = CoordinatorHome(folder / "coordinator")
    initialise(home, Settings(hosts=("localhost",)), clock=SystemClock(), entropy=os_entropy)
    for number in range(SENDERS):
        (folder / f"key-{number}.pem").write_bytes(new_device_key())
    each = 10 if quick else 40
    server = _child("--serve", folder, each)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    senders = _child("--send", folder, port)
    try:
        served: dict[str, float] = json.loads(server.stdout.readline())
    finally:
        senders.terminate()
        sent, _ = senders.communicate()
        server.kill()
        server.wait()
    count = SENDERS * each
    return {
        "uploads": count,
        "uploads_per_s": count / served["seconds"],
        "upload_server_cpu_s": served["cpu_s"] / count,
        "uploads_per_s_by_cpu": count / served["cpu_s"],
        "upload_sender_cpu_s": float(sent) / count,
    }


def serve(folder: Path, each: int) -> None:
    """Asks every sender for so many uploads; says its port, then what they took."""
    from flwr.app import Message

    from fedpeft.clock import SystemClock
    from fedpeft.flower.records import to_record
    from fedpeft.flower.superlink import SuperLink
    from fedpeft_client.enrolment.keys import public_key
    from fedpeft_server.enrolment.active_devices import Standing
    from fedpeft_server.home import CoordinatorHome
    from fedpeft_server.service.fleet_gateway import FleetGateway
    from fedpeft_server.service.listener import Listener, take_port
    from fedpeft_server.service.prometheus import Meters

    home, link = CoordinatorHome(folder / "coordinator"), SuperLink(folder / "objects")
    names = {public_key(path.read_bytes()): path.stem for path in sorted(folder.glob("key-*.pem"))}
    nodes = [link.enrol(key, name) for key, name in names.items()]
    gateway = FleetGateway(link.handlers, lambda key: Standing(device=names[key]), clock=SystemClock(), meters=Meters())
    taken = take_port("127.0.0.1", 0, "benchmark")
    listener = Listener(gateway, taken, certificate=home.server_certificate, key=home.server_key)
    listener.start()
    asked = [
        Message(to_record(b"upload"), dst_node_id=node, message_type="train.mask", ttl=WITHIN_S)
        for node in nodes
        for _ in range(each)
    ]
    print(taken.getsockname()[1], flush=True)
    while len(link.online()) < SENDERS:
        time.sleep(0.05)
    begun, spent = time.monotonic(), time.process_time()
    waiting = {one for one in link.push(asked, answer_bytes=UPLOAD_BYTES) if one is not None}
    assert len(waiting) == len(asked)
    while waiting and time.monotonic() - begun < WITHIN_S:
        seen = link.arrivals
        for message_id, reply in link.claim(waiting):
            assert isinstance(reply, bytes)
            assert len(reply) == UPLOAD_BYTES
            waiting.remove(message_id)
        if waiting:
            link.wait(seen, 1.0)
    assert not waiting, f"{len(waiting)} uploads did not come"
    print(json.dumps({"seconds": time.monotonic() - begun, "cpu_s": time.process_time() - spent}), flush=True)
    threading.Event().wait()


def send(folder: Path, port: int) -> None:
    """The senders, until the process is told to end; says what CPU they took."""
    import signal

    from fedpeft.flower import client_app
    from fedpeft.flower.fleet import Fleet
    from fedpeft.flower.fleet_client import FleetTarget
    from fedpeft_server.home import CoordinatorHome

    ca = CoordinatorHome(folder / "coordinator").ca_certificate.read_bytes()
    payload, stop = bytes(UPLOAD_BYTES), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def sender(key: bytes) -> None:
        target = FleetTarget(address=f"localhost:{port}", ca=ca, node_key=key)
        app = client_app(lambda context, stage, request: payload)
        Fleet(
            lambda: target, app, wait=lambda answered: None if answered else time.sleep(0.2), stopping=stop.is_set
        ).serve()

    for path in sorted(folder.glob("key-*.pem")):
        threading.Thread(target=sender, args=(path.read_bytes(),), daemon=True).start()
    stop.wait()
    print(time.process_time(), flush=True)


def _child(role: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, role, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def main() -> None:
    """One process of the benchmark, or the whole."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    for role in ("--serve", "--send"):
        parser.add_argument(role, nargs=2, help=argparse.SUPPRESS)
    chosen: Any = parser.parse_args()
    if chosen.serve:
        serve(Path(chosen.serve[0]), int(chosen.serve[1]))
    elif chosen.send:
        send(Path(chosen.send[0]), int(chosen.send[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), quick=chosen.quick)))


if __name__ == "__main__":
    main()
