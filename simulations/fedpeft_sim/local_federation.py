"""`fedpeft local up`: a real federation on this machine, from the file that `fedpeft simulate` runs.

A coordinator and one device per client, each a process of its own: provisioned, enrolled by token, over TLS, with the
protocol of a deployment. Everything lies in one folder and stays there, so that a federation that was ended goes on.

::

    FOLDER/coordinator/     its home (fedpeft_server.home)
    FOLDER/devices/NAME/    a device's home, with its examples
    FOLDER/bases/           the base, which all devices share
    FOLDER/logs/NAME.log    what each process said
    FOLDER/local.json       what is needed to go on
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from fedpeft.base import BaseArtifact
from fedpeft.clock import SystemClock
from fedpeft.config import RunConfig, load, parse, resolved
from fedpeft.entropy import os_entropy
from fedpeft.errors import ConfigInvalid, DataInvalid, DeadlineMissed, RunFailed
from fedpeft.files import PRIVATE, write_file
from fedpeft.planner import REFERENCE
from fedpeft_client.enrolment.join import JoinOptions, join
from fedpeft_client.home import DeviceHome
from fedpeft_client.site import Site, SiteData, SiteLimits
from fedpeft_client.training.choice import Capacity
from fedpeft_server.enrolment.certificate_authority import Authority, initialise
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.jobs.job_queue import Job, JobQueue, JobState
from fedpeft_sim.local_process import SEED_FILE
from fedpeft_sim.local_start import LocalProcess, LocalStart
from fedpeft_sim.population import Client, Population

__all__ = ["LocalFederation"]

STATE = "local.json"
START_S, END_S, LOOK_S = 120.0, 20.0, 0.05
"""How long processes may take to be there, and to end; and between two looks."""
COORDINATOR = "coordinator"


class LocalFederation:
    """Use it in a ``with``: whatever still runs at its end is ended.

    Args:
        path: the folder.
        clients: the devices' names.
    """

    def __init__(self, path: Path, clients: tuple[str, ...]) -> None:
        self.path, self.clients = path, clients
        self.home = CoordinatorHome(path / COORDINATOR)
        self._processes: dict[str, LocalProcess] = {}
        self._starts: LocalStart | None = None
        self._clock = SystemClock()

    @classmethod
    def make(cls, path: Path, population: Population) -> Self:
        """A folder with a coordinator that was never up, and each client's examples and rules."""
        for client in population.clients:
            if not client.capacity.methods:
                raise ConfigInvalid(
                    f"Expected a PEFT method for client {client.name}, found the class head alone, which a deployed "
                    "device does not train by itself; give it one in [[device]]."
                )
        made = cls(path, tuple(client.name for client in population.clients))
        made.home.path.mkdir(parents=True, mode=0o700)
        (path / "logs").mkdir()
        fleet, service, enrol, metrics = _free_ports()
        settings = Settings(
            hosts=("localhost",),
            bind="127.0.0.1",
            fleet_port=fleet,
            service_port=service,
            enrol_port=enrol,
            metrics_port=metrics,
        )
        initialise(made.home, settings, clock=made._clock, entropy=os_entropy)
        for client in population.clients:
            made._lay_out(client, population.config)
        write_file(path / STATE, json.dumps({"clients": made.clients}).encode())
        return made

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """A federation that was made before.

        Raises:
            DataInvalid: there is none.
        """
        try:
            clients = tuple(map(str, json.loads((path / STATE).read_text(encoding="utf-8"))["clients"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataInvalid(f"Expected a folder of `fedpeft local up` with {STATE}, found none at {path}.") from error
        return cls(path, clients)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_coordinator(self) -> None:
        """Its process; ``until_ready`` waits for it."""
        self._starts = LocalStart(self.path / "logs")
        self._start(COORDINATOR, self.home.path)

    def until_ready(self) -> None:
        """Returns when the coordinator answers."""
        self._until(lambda: self._get("readyz") is not None, "the coordinator", START_S)

    def take_base(self, artifact: BaseArtifact) -> None:
        """Lay the base into the coordinator's store, by links where the disk has them."""
        target = self.home.bases / artifact.path.name
        if not target.exists():
            self.home.bases.mkdir(parents=True, exist_ok=True)
            shutil.copytree(artifact.path, target, copy_function=_link_or_copy)

    def start_device(self, name: str) -> None:
        """Enrol a device by a token, unless it is, and start it."""
        home = DeviceHome(self.path / "devices" / name)
        if not home.is_enrolled:
            self.enrol(home, name)
        self._start(name, home.path)

    def until_online(self) -> None:
        """Returns when the coordinator reaches every device."""
        self._until(lambda: self.online() >= set(self.clients), "the devices", START_S)

    def online(self) -> set[str]:
        """The devices that the coordinator reaches."""
        status = self.status()
        devices = status.get("devices")
        return {str(one["name"]) for one in devices if one["online"]} if isinstance(devices, list) else set()

    def status(self) -> Mapping[str, object]:
        """What the coordinator says of itself; nothing while it is not up."""
        found = self._get("status")
        status: Mapping[str, object] = json.loads(found) if found else {}
        return status

    def submit(self, config: RunConfig, base: str) -> Job:
        """Queue the run, or go on with the one that is there."""
        queue = self._queue()
        for job in queue.jobs():
            return queue.resume(job) if job.state in (JobState.STOPPED, JobState.FAILED) else job
        source = config.base.model_copy(update={"model": base})
        text = resolved(config.model_copy(update={"base": source}))
        parse(text, source=str(self.path / "run.toml"))
        write_file(self.path / "run.toml", text.encode())
        return queue.submit(text, source=str(self.path / "run.toml"))

    def config(self) -> RunConfig:
        """The run's, of a federation that was submitted one.

        Raises:
            DataInvalid: none was.
        """
        if not (self.path / "run.toml").is_file():
            raise DataInvalid(f"Expected a federation that had begun its run, found none in {self.path}; start anew.")
        return load(self.path / "run.toml", simulation=True)

    def trains(self) -> dict[str, str]:
        """Device -> what it trains."""
        sites = {name: Site.load(DeviceHome(self.path / "devices" / name).site).limits for name in self.clients}
        return {name: str(Capacity(methods=tuple(limits.methods), rank=limits.rank)) for name, limits in sites.items()}

    def job(self) -> Job:
        """Where the run stands."""
        return self._queue().jobs()[-1]

    def expect_alive(self) -> None:
        """Refuses to wait for processes that are gone.

        Raises:
            RunFailed: names the first one, with the end of what it said.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RunFailed(
                    f"Expected {name} to run, found that it ended with {process.returncode}:\n{self.log(name)[-2000:]}"
                )

    def log(self, name: str) -> str:
        """What a process said."""
        return (self.path / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """Ends every process: devices first, then the coordinator; what does not end in time is killed."""
        coordinator = self._processes.pop(COORDINATOR, None)
        for group in (list(self._processes.values()), [coordinator] if coordinator else []):
            for process in group:
                process.send_signal(signal.SIGTERM)
            end = self._clock.monotonic_s() + END_S
            for process in group:
                try:
                    process.wait(max(0.1, end - self._clock.monotonic_s()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._processes.clear()
        if self._starts is not None:
            self._starts.close()
            self._starts = None

    def _lay_out(self, client: Client, config: RunConfig) -> None:
        home = self.path / "devices" / client.name
        home.mkdir(parents=True, mode=0o700)
        lines = [json.dumps(dict(row), default=str, ensure_ascii=False) + "\n" for row in client.records]
        write_file(home / "examples.jsonl", "".join(lines).encode("utf-8", "surrogatepass"), mode=PRIVATE)
        write_file(home / SEED_FILE, str(config.run.seed).encode())
        use = config.performance.model_dump(include=set(SiteLimits.model_fields))
        limits = SiteLimits(
            **use, methods=client.capacity.methods, rank=client.capacity.rank, head=client.capacity.head
        )
        data = SiteData(source=str((home / "examples.jsonl").absolute()), holdout=config.data.holdout)
        policy = Site.model_fields["policy"].get_default(call_default_factory=True)
        policy = policy.model_copy(update={"allow_fast": config.secagg.mode == "fast"})
        site = Site(data=data, limits=limits, policy=policy)
        write_file(DeviceHome(home).site, site.to_toml().encode())

    def enrol(self, home: DeviceHome, name: str) -> None:
        """Make a home that of an enrolled device, by a token of its own."""
        registry, settings = Registry(self.home.registry), self.home.settings()
        try:
            token = Tokens(registry, self._clock).create(
                host=settings.hosts[0],
                enrol_port=settings.enrol_port,
                ca_fingerprint=Authority.of_home(self.home, self._clock).fingerprint,
                ttl_s=600.0,
                uses=1,
                auto_approve=True,
                organisation="",
                entropy=os_entropy,
            )
        finally:
            registry.close()
        options = JoinOptions(
            token=token.to_text(),
            device=name,
            organisation=name,
            bases=str((self.path / "bases").absolute()),
            profile=REFERENCE.to_json(),
        )
        pause = threading.Event().wait
        join(
            home, options, clock=self._clock, entropy=os_entropy, wait_s=START_S, pause=pause, on_waiting=lambda _: None
        )

    def _start(self, name: str, home: Path) -> None:
        role = COORDINATOR if name == COORDINATOR else "device"
        if self._starts is None:
            raise RuntimeError("Expected the coordinator to be started first.")
        self._processes[name] = self._starts.start(name, role, home)

    def _queue(self) -> JobQueue:
        return JobQueue(self.home.path / "queue")

    def _get(self, page: str) -> str | None:
        url = f"http://127.0.0.1:{self.home.settings().metrics_port}/{page}"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
        return None

    def _until(self, true: Callable[[], bool], what: str, within_s: float) -> None:
        end = self._clock.monotonic_s() + within_s
        pause = threading.Event()
        while not true():
            self.expect_alive()
            if self._clock.monotonic_s() > end:
                raise DeadlineMissed(f"Expected {what} within {within_s:.0f} s; see {self.path / 'logs'}.")
            pause.wait(LOOK_S)


def _free_ports() -> tuple[int, int, int, int]:
    sockets = [socket.socket() for _ in range(4)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    first, second, third, fourth = (int(one.getsockname()[1]) for one in sockets)
    for one in sockets:
        one.close()
    return first, second, third, fourth


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)
    return target
