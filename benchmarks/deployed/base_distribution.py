"""Shipping a base: gRPC with resume against HTTPS Range through Flower's own web stack, in the same run.

    python benchmarks/deployed/base_distribution.py [--quick]

Servers and clients are processes of their own on loopback, with TLS; both clients check every 8 MiB chunk, write the
file and make it durable. CPU seconds are of client and server together: unlike the wall's they hardly depend on what
else the machine does. The peer is what Flower 1.41 serves with (FastAPI, uvicorn, starlette's FileResponse with Range)
read by what its clients read with (httpx). Also: a client is killed halfway, goes on, and asks again at the end.
Progress goes to stderr, one JSON object to stdout; `benchmarks/deployment.py` calls ``measure``.
"""

import argparse
import functools
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from fedpeft.base.artifact import describe_file
from fedpeft.base.manifest import CHUNK_BYTES, Manifest, SourceEntry, digest_of
from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.planner import REFERENCE
from fedpeft_client.connection.fetch_base import FetchProgress, fetch_base
from fedpeft_client.connection.grpc_client import Link
from fedpeft_client.enrolment.join import JoinOptions, join
from fedpeft_client.home import DeviceHome
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, initialise
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.grpc_service import FleetService
from fedpeft_server.service.wakeups import Wakeups

RESULTS = Path(__file__).parents[1] / "results" / "base_distribution.json"
FILE = "model.safetensors"
MIB = 2**20


def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    """Every figure about the base, in an empty folder.

    Returns:
        ``rejoin_base_bytes``, ``resent_bytes_after_cut``, ``base_speedup_vs_https``, and what they were made from.
    """
    size = (128 if quick else 1024) * MIB
    home, digest = prepare(folder, size)
    device = DeviceHome(folder / "device")
    server = spawn("--serve-grpc", home.path)
    try:
        enrol(home, device)
        before_mb, ours, peers = peak_mb(server.pid), [], []
        for repeat in range(1 if quick else 3):
            ours.append(timed(server, "--fetch", device.path, digest, folder / f"cache{repeat}"))
            say(f"gRPC   {size / MIB:.0f} MiB in {ours[-1][0]:.2f} s, {ours[-1][1]:.2f} s of CPU")
            web = spawn("--serve-https", home.path)
            try:
                peers.append(timed(web, "--get", home.path, digest, folder / f"got{repeat}"))
                https_mb = peak_mb(web.pid)
            finally:
                stop(web)
            say(f"HTTPS  {size / MIB:.0f} MiB in {peers[-1][0]:.2f} s, {peers[-1][1]:.2f} s of CPU")
        grew_mb = peak_mb(server.pid) - before_mb
        rejoin = fetch(device, digest, folder / "cache0")
        resent, had = cut(device, digest, folder / "cut", size, server)
        say(f"killed with {had / MIB:.1f} MiB on disk; resent {resent / MIB:.2f} MiB")
    finally:
        stop(server)
    (grpc_s, grpc_cpu_s), (https_s, https_cpu_s) = (map(median, zip(*each, strict=True)) for each in (ours, peers))
    return {
        "base_bytes": size,
        "grpc_s": grpc_s,
        "https_s": https_s,
        "grpc_cpu_s": grpc_cpu_s,
        "https_cpu_s": https_cpu_s,
        "base_speedup_vs_https": https_s / grpc_s,
        "grpc_server_rss_growth_mb": grew_mb,
        "https_server_peak_mb": https_mb,
        "rejoin_base_bytes": rejoin,
        "resent_bytes_after_cut": resent,
    }


def prepare(folder: Path, size: int) -> tuple[CoordinatorHome, str]:
    """A coordinator's home with one base of noise."""
    home = CoordinatorHome(folder / "coordinator")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    fleet, service, enrolment, metrics = (one.getsockname()[1] for one in sockets)
    for one in sockets:
        one.close()
    ports = {"fleet_port": fleet, "service_port": service, "enrol_port": enrolment, "metrics_port": metrics}
    settings = Settings(hosts=("127.0.0.1",), bind="127.0.0.1", **ports)
    initialise(home, settings, clock=SystemClock(), entropy=os_entropy)
    new = home.bases / "new"
    new.mkdir()
    with (new / FILE).open("wb") as file:
        for number in range(size // CHUNK_BYTES):
            file.write(hashlib.shake_128(number.to_bytes(4, "big")).digest(64) * (CHUNK_BYTES // 64))
    manifest = Manifest(
        format="fedpeft-base/1",
        source=SourceEntry(origin="benchmark", digest="0" * 64, files={}),
        quantize="none",
        model_type="none",
        parameters=0,
        tasks={},
        tensors={},
        files=(describe_file(new / FILE),),
    ).canonical()
    (new / "manifest.json").write_bytes(manifest)
    digest = digest_of(manifest)
    new.rename(home.bases / digest.replace(":", "-"))
    return home, digest


def enrol(home: CoordinatorHome, device: DeviceHome) -> None:
    """The device joins by an automatic token."""
    registry, settings, clock = Registry(home.registry), home.settings(), SystemClock()
    token = Tokens(registry, clock).create(
        host="127.0.0.1",
        enrol_port=settings.enrol_port,
        ca_fingerprint=Authority.of_home(home, clock).fingerprint,
        ttl_s=600,
        uses=1,
        auto_approve=True,
        organisation="",
        entropy=os_entropy,
    )
    registry.close()
    wishes = JoinOptions(token=token.to_text(), device="bench", organisation="", bases="", profile=REFERENCE.to_json())
    join(device, wishes, clock=clock, entropy=os_entropy, wait_s=0, pause=time.sleep, on_waiting=say)


def fetch(device: DeviceHome, digest: str, cache: Path) -> int:
    """Fetches the base; how many bytes of it came over the network."""
    received = 0

    def note(progress: FetchProgress) -> None:
        nonlocal received
        received = progress.received_bytes

    with Link.of_home(device) as link:
        fetch_base(link, digest, cache, progress=note, pause=time.sleep)
    return received


def cut(device: DeviceHome, digest: str, cache: Path, size: int, server: subprocess.Popen[str]) -> tuple[int, int]:
    """Kills a fetching process halfway and fetches the rest: bytes the server sent twice, bytes that were on disk."""
    sent_before = sent_bytes(server)
    child = subprocess.Popen([sys.executable, __file__, "--fetch", device.path, digest, cache])
    staging = cache / f".staging-fetch-{digest.removeprefix('sha256:')}" / FILE
    while child.poll() is None and (not staging.exists() or staging.stat().st_size < size // 2):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    had = staging.stat().st_size
    fetch(device, digest, cache)
    return sent_bytes(server) - sent_before - size, had


def get(home: CoordinatorHome, digest: str, target: Path) -> None:
    """The peer: one HTTPS request with Range, each 8 MiB chunk checked and written."""
    import httpx

    manifest = json.loads((home.bases / digest.replace(":", "-") / "manifest.json").read_text())
    (entry,) = manifest["files"]
    url = f"https://127.0.0.1:{home.settings().fleet_port}/base/{digest.replace(':', '-')}/{FILE}"
    trust = ssl.create_default_context(cafile=str(home.ca_certificate))
    with (
        httpx.Client(verify=trust, timeout=60) as client,
        client.stream("GET", url, headers={"Range": "bytes=0-"}) as answer,
        target.open("wb") as file,
    ):
        if answer.status_code != 206:
            raise SystemExit(f"HTTPS answered {answer.status_code}")
        for number, chunk in enumerate(answer.iter_bytes(CHUNK_BYTES)):
            if hashlib.sha256(chunk).hexdigest() != entry["chunks"][number]:
                raise SystemExit("HTTPS gave other bytes")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def serve_grpc(home: CoordinatorHome) -> None:
    """Our service, until stdin closes; answers every line with the base bytes sent so far."""
    registry, clock = Registry(home.registry), SystemClock()
    admission = Admission(home, registry, AuditLog(home.audit, clock), clock)
    service = FleetService(home, registry, admission, Wakeups(), clock, gateway=socket.socket.close)
    service.start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(service.base_bytes_sent, flush=True)
    service.stop()


def serve_https(home: CoordinatorHome) -> None:
    """Flower's web stack: FastAPI on uvicorn, a FileResponse, TLS; until it is killed."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.get("/base/{folder}/{name}")
    def base(folder: str, name: str) -> FileResponse:
        return FileResponse(home.bases / Path(folder).name / Path(name).name)

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=home.settings().fleet_port,
        ssl_certfile=str(home.server_certificate),
        ssl_keyfile=str(home.server_key),
        access_log=False,
        log_level="warning",
    )
    server = uvicorn.Server(config)
    started = server.startup

    async def announce(*arguments: object, **options: object) -> None:
        await started(*arguments, **options)
        print("ready", flush=True)

    server.startup = announce  # type: ignore[method-assign]
    server.run()


def spawn(*arguments: object) -> subprocess.Popen[str]:
    """A server process that has said that it is ready."""
    command = [sys.executable, __file__, *(str(argument) for argument in arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{arguments[0]} did not start")
    return process


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a server."""
    process.terminate()
    process.wait(20)


def sent_bytes(server: subprocess.Popen[str]) -> int:
    """Base bytes that our service has sent so far."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("?\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def timed(server: subprocess.Popen[str], *arguments: object) -> tuple[float, float]:
    """A client process's transfer, its start not counted: seconds, and CPU seconds of it and that server."""
    before = cpu_s(server.pid)
    command = [sys.executable, __file__, *(str(argument) for argument in arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(said[-2]), float(said[-1]) + cpu_s(server.pid) - before


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user's and system's."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def peak_mb(pid: int) -> float:
    """A process's largest resident set so far, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


say = functools.partial(print, file=sys.stderr, flush=True)


def main() -> None:
    """One process of the benchmark, or the whole."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    for role, count in (("--serve-grpc", 1), ("--serve-https", 1), ("--fetch", 3), ("--get", 3)):
        parser.add_argument(role, nargs=count)
    chosen = parser.parse_args()
    started, spent = time.monotonic(), time.process_time()
    if chosen.serve_grpc:
        serve_grpc(CoordinatorHome(Path(chosen.serve_grpc[0])))
    elif chosen.serve_https:
        serve_https(CoordinatorHome(Path(chosen.serve_https[0])))
    elif chosen.fetch:
        fetch(DeviceHome(Path(chosen.fetch[0])), chosen.fetch[1], Path(chosen.fetch[2]))
        print(time.monotonic() - started, time.process_time() - spent)
    elif chosen.get:
        import httpx  # noqa: F401  its import is no part of the transfer

        started, spent = time.monotonic(), time.process_time()
        get(CoordinatorHome(Path(chosen.get[0])), chosen.get[1], Path(chosen.get[2]))
        print(time.monotonic() - started, time.process_time() - spent)
    else:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            figures = measure(Path(folder), quick=chosen.quick)
        if not chosen.quick:
            RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
