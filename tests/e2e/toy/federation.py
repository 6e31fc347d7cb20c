"""A coordinator and devices as real processes on loopback, with the real protocol and toy training."""

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from forked import start_toy
from safetensors.numpy import load
from toy_spec import SPEC

from fedpeft.clock import SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.fork_server import ForkedProcess
from fedpeft.planner import REFERENCE
from fedpeft.testing.trainers import toy_state
from fedpeft_client.enrolment.join import JoinOptions, join
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site, SiteData
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, initialise
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.jobs.job_queue import Job, JobQueue

ToyProcess = subprocess.Popen[bytes] | ForkedProcess
TOY = Path(__file__).parent
PORTS = ("fleet_port", "service_port", "enrol_port", "metrics_port")
RUN = """
[run]
name = "toy"
[base]
model = "sha256:{base}"
[task]
kind = "classify"
labels = ["no", "yes"]
[data]
source = "none.jsonl"
partition = {{ by = "column", column = "site" }}
[adapter]
lora = {{ rank = 4 }}
[train]
local_steps = 1
[rounds]
count = {rounds}
min_devices = {least}
fit_deadline_s = 40
stage_deadline_s = 20
gather_deadline_s = 60
{more}
[secagg]
max_abs = 4.0  # a toy device sends ones, whatever the learning rates are
[aggregate]
weight = "uniform"
[[device]]
clients = ["*"]
methods = ["lora"]
"""


def enrol_device(coordinator: CoordinatorHome, path: Path, name: str, host: str = "localhost") -> DeviceHome:
    """Joins with a token of its own, as `fedpeft client join` does, and keeps its keys in ``path``."""
    registry, settings = Registry(coordinator.registry), coordinator.settings()
    token = Tokens(registry, SystemClock()).create(
        host=host, enrol_port=settings.enrol_port,
        ca_fingerprint=Authority.of_home(coordinator, SystemClock()).fingerprint,
        ttl_s=600.0, uses=1, auto_approve=True, organisation="", entropy=os_entropy,
    )  # fmt: skip
    registry.close()
    home = DeviceHome(path)
    options = JoinOptions(token=token.to_text(), device=name, organisation=name, bases="", profile=REFERENCE.to_json())
    join(
        home, options, clock=SystemClock(), entropy=os_entropy, wait_s=20.0,
        pause=threading.Event().wait, on_waiting=lambda code: None,
    )  # fmt: skip
    return home


@contextmanager
def running(path: Path, names: Collection[str] = (), *, one_port: bool = False) -> "Iterator[ToyFederation]":
    """A coordinator that is up and these devices, until the block is left; forked, see ``ToyFederation``."""
    made = ToyFederation(path, one_port=one_port, forked=True)
    try:
        made.up()
        made.admit(names)
        yield made
    finally:
        made.close()


@dataclass
class ToyFederation:
    """Use ``up`` and ``device``; ``close`` ends what still runs.

    Args:
        path: of an empty folder.
        hosts, bind: the coordinator's.
        one_port: whether devices reach it on one port.
        forked: whether its processes are forked from one that has imported what they need; else each is a new
            interpreter, which is what a start costs, in time and in memory.
    """

    path: Path
    hosts: tuple[str, ...] = ("localhost",)
    bind: str = "127.0.0.1"
    one_port: bool = False
    forked: bool = False
    processes: dict[str, ToyProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sockets = [socket.socket() for _ in PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = {name: one.getsockname()[1] for name, one in zip(PORTS, sockets, strict=True)}
        for one in sockets:
            one.close()
        if self.one_port:
            ports |= dict.fromkeys(("service_port", "enrol_port"), ports["fleet_port"])
        self.home = CoordinatorHome(self.path / "coordinator")
        self.settings = Settings(hosts=self.hosts, bind=self.bind, **ports)
        initialise(self.home, self.settings, clock=SystemClock(), entropy=os_entropy)
        self.queue = JobQueue(self.home.path / "queue")

    def up(self, *, forked: bool | None = None) -> ToyProcess:
        """Starts the coordinator; returns when it is ready."""
        process = self.start("coordinator", "toy_up.py", self.home.path, forked=forked)
        self.until(lambda: self.ready() or process.poll() is not None, "the coordinator")
        assert process.poll() is None, self.log("coordinator")
        return process

    def ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.metrics_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def enrol(self, name: str) -> DeviceHome:
        """Joins with a token, as `fedpeft client join` does."""
        home = enrol_device(self.home, self.path / name, name)
        home.site.write_text(Site(data=SiteData(source="none.jsonl")).to_toml())
        return home

    def device(self, name: str, *, forked: bool | None = None) -> ToyProcess:
        """Starts an enrolled device."""
        return self.start(name, "toy_device.py", self.path / name, forked=forked)

    def admit(self, names: Collection[str]) -> None:
        """Enrols and starts devices; returns when the coordinator reaches them."""
        for name in names:
            self.enrol(name)
            self.device(name)
        self.until(lambda: self.online() >= set(names), "the devices")

    def start(self, name: str, script: str, home: Path, *, forked: bool | None = None) -> ToyProcess:
        """A toy process; its log is beside its home. ``forked``: if not as the others are."""
        path = os.pathsep.join([str(TOY), *(entry for entry in sys.path if entry)])
        environment, log = {**os.environ, "PYTHONPATH": path}, self.path / f"{name}.log"
        if self.forked if forked is None else forked:
            log.touch()
            self.processes[name] = start_toy(TOY / script, home, environment=environment, log=log)
            return self.processes[name]
        with log.open("ab") as file:
            command = [sys.executable, str(TOY / script), str(home)]
            self.processes[name] = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        return self.processes[name]

    def submit(self, *, rounds: int, least: int = 3, more: str = "") -> Job:
        """A toy run; ``more`` are further lines of [rounds]."""
        return self.queue.submit(RUN.format(base="0" * 64, rounds=rounds, least=least, more=more), source="run.toml")

    def finished(self, job: Job, *, within_s: float = 180.0) -> Job:
        """The job once it has ended."""
        self.until(
            lambda: self.queue.job(str(job.number)).state.value not in ("queued", "running"), "the run", within_s
        )
        return self.queue.job(str(job.number))

    def kill(self, name: str) -> None:
        """kill -9, and the process is gone."""
        self.processes[name].kill()
        self.processes[name].wait()

    def status(self) -> dict[str, object]:
        """What the coordinator says of itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.metrics_port}/status", timeout=5) as answer:
            found: dict[str, object] = json.load(answer)
            return found

    def online(self) -> set[str]:
        """The devices that the coordinator reaches."""
        devices = self.status()["devices"]
        assert isinstance(devices, list)
        return {device["name"] for device in devices if device["online"]}

    def rows(self, job: Job) -> list[dict]:
        """The committed rounds."""
        metrics = self.home.runs / self.queue.job(str(job.number)).run / "metrics.jsonl"
        text = metrics.read_text() if metrics.exists() else ""  # before the first commit
        whole, _, _ = text.rpartition("\n")  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def trained(self, job: Job) -> np.ndarray:
        """How far each device's coordinate moved over the run."""
        folder = self.home.runs / self.queue.job(str(job.number)).run / "adapters" / "final"
        before = toy_state(SPEC)
        block = next(name for name in before if name.startswith("lora.B"))
        tensors = load((folder / "state.safetensors").read_bytes())
        key = next(name for name in tensors if "lora.B" in name)
        return tensors[key].ravel() - before[block]

    def audited(self) -> list[str]:
        """The events of the audit log, which is checked."""
        return [record.event.value for record in AuditLog(self.home.audit, SystemClock()).records()]

    def revoke(self, name: str, reason: str) -> None:
        """As `fedpeft coordinator clients revoke` does, from another process than the coordinator's."""
        registry = Registry(self.home.registry)
        Admission(self.home, registry, AuditLog(self.home.audit, SystemClock()), SystemClock()).revoke(name, reason)
        registry.close()

    def until(self, true: Callable[[], bool], what: str, within_s: float = 120.0) -> None:
        """Returns once it is true."""
        clock = SystemClock()
        end = clock.monotonic_s() + within_s
        while not true():
            if clock.monotonic_s() > end:
                logs = "\n".join(self.log(name)[-1500:] for name in self.processes)
                raise AssertionError(f"{what} took longer than {within_s} s\n{logs}")
            threading.Event().wait(0.05)

    def log(self, name: str) -> str:
        """What a process said."""
        return (self.path / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything that still runs."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
