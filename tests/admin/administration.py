"""A coordinator's administration port on loopback, with real TLS, real tokens and a registry; no round engine."""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from fedpeft.clock import Clock, SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.planner import REFERENCE
from fedpeft_server.admin.access import Access, Role
from fedpeft_server.admin.administered import Administered
from fedpeft_server.admin.api import AdminApi
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, initialise
from fedpeft_server.enrolment.registry import EnrolledDevice, Registry, Status
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.jobs.job_queue import JobQueue
from fedpeft_server.service.connection_limits import ConnectionTimeouts
from fedpeft_server.service.listener import Listener, take_port
from fedpeft_server.service.prometheus import Meters

RUN = """
[run]
name = "notes"
[base]
model = "sha256:{digest}"
[task]
kind = "causal-lm"
[adapter]
lora = {{}}
""".format(digest="0" * 64)


@dataclass
class Port:
    """The administration of one coordinator."""

    site: Administered
    listener: Listener
    api: AdminApi
    port: int
    live: dict[str, object] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def token(self, role: str = "admin", name: str = "someone", ttl_s: float = 3600.0) -> str:
        pin = Authority.of_home(self.site.home, self.site.clock).fingerprint
        return self.site.access.create(
            Role[role.upper()], name, ttl_s=ttl_s, ca_fingerprint=pin, entropy=os_entropy
        )[0]  # fmt: skip

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.site.home.ca_certificate))

    def client(self, token: str = "", **headers: str) -> httpx.Client:
        """A client that shows this token; an address of its own is not needed: limits are generous to holders."""
        known = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=self.trust(), headers={**known, **headers}, timeout=10.0)

    def device(self, name: str, status: Status = Status.PENDING, **changes: Any) -> EnrolledDevice:
        """One in the registry; its keys are made up, which only matters where it is approved."""
        made = EnrolledDevice(
            name=name, organisation="clinic", status=status, identity=name.encode().ljust(32, b"."),
            node_key=b"key of " + name.encode(), csr=b"csr", serial=None, certificate=b"",
            profile=REFERENCE.to_json(), code="ABCD-EFGH", token_id="none", reason="", node_id=None,
            since="2026-11-30T00:00:00+00:00",
        )  # fmt: skip
        made = replace(made, **changes)
        self.site.registry.put(made)
        return made

    def audited(self) -> list[tuple[str, str, str]]:
        """(event, actor, subject), the chain checked."""
        return [(one.event.value, one.actor, one.subject) for one in self.site.audit.records()]


def open_port(path: Path, *, clock: Clock | None = None, timeouts: ConnectionTimeouts | None = None) -> Port:
    """A new home and its administration."""
    clock = clock or SystemClock()
    home = CoordinatorHome(path)
    initialise(home, Settings(hosts=("localhost",), bind="127.0.0.1"), clock=clock, entropy=os_entropy)
    registry, audit = Registry(home.registry), AuditLog(home.audit, clock)
    live: dict[str, object] = {"now": "run 1 round 2: waiting", "stopping": False, "devices": []}
    site = Administered(
        home=home,
        registry=registry,
        admission=Admission(home, registry, audit, clock),
        audit=audit,
        queue=JobQueue(home.path / "queue"),
        access=Access(registry, clock),
        clock=clock,
        live=lambda: live,
    )
    taken = take_port("127.0.0.1", 0, "test")
    files = (home.server_certificate, home.server_key)
    api = AdminApi(site, Meters())
    listener = Listener(api, taken, certificate=files[0], key=files[1], timeouts=timeouts)
    listener.start()
    return Port(site=site, listener=listener, api=api, port=taken.getsockname()[1], live=live)


def close(port: Port) -> None:
    port.api.close()
    port.listener.stop()
    port.site.registry.close()


def run_of(port: Port, name: str = "20261130-notes", rounds: int = 2) -> str:
    """A run of the queue that has finished, with rounds and an adapter on the disk; its number."""
    job = port.site.queue.submit(RUN, source="run.toml")
    folder = port.site.home.runs / name
    (folder / "adapters" / "final").mkdir(parents=True)
    (folder / "adapters" / "final" / "adapter_model.safetensors").write_bytes(b"weights " * 1000)
    (folder / "report.html").write_text("<title>report</title>")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(1, rounds + 1)))
    event = {"schema_version": 1, "at": "2026-11-30T00:00:00Z", "kind": "round.committed", "round": rounds}
    (folder / "events.jsonl").write_text(json.dumps({**event, "client": "", "detail": {"detail": "loss 1"}}) + "\n")
    port.site.queue.put(replace(job, state=type(job.state).FINISHED, run=name))
    return str(job.number)


def row(number: int, **changes: object) -> Mapping[str, object]:
    """A committed round as in metrics.jsonl."""
    spent = {"bytes_up": 10, "bytes_down": 20, "seconds": 1.0}
    device = {"client": "ward-a", "methods": "lora r4", "state": "summed", **spent}
    lost = {**device, "client": "ward-b", "state": "dropped", "reason": "silent in train.fit"}
    return {
        "schema_version": 1, "round": number, "loss": 2.0 / number, "accuracy": 0.5, "evaluators": 2, "train_loss": 1.0,
        "devices_invited": 3, "devices_ready": 3, "devices_survived": 2, "bytes_up": 1000, "bytes_down": 2000,
        "seconds": 1.5, "clients": [device, lost],
    } | changes  # fmt: skip
