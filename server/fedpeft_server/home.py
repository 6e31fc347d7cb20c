"""The coordinator's home: where everything that outlives the process lies, and what `init` decided.

::

    HOME/schema.json          the form of all this (fedpeft.home_schema)
    HOME/coordinator.json     names and ports (Settings); readable by all who may read the home
    HOME/pki/ca.crt ca.key    the federation's own certificate authority
    HOME/pki/server.crt .key  of the gateway and of the gRPC service
    HOME/pki/identity.seed    Ed25519: signs the terms of every round
    HOME/registry.sqlite      tokens and enrolled devices (fedpeft_server.enrolment.registry)
    HOME/objects/             messages on their way, emptied at each start
    HOME/audit.jsonl          hash-chained record of who did what (fedpeft_server.enrolment.audit_log)
    HOME/bases/               base-model artifacts (fedpeft.base.ArtifactStore)
    HOME/runs/                run directories (fedpeft_server.run.run_directory)
    HOME/webhooks/            addresses that are told what happens (fedpeft_server.webhooks)
    HOME/logs/

Directories are 0700 and secrets 0600. `FEDPEFT_HOME` names the home where `--home` is not given, so that
`fedpeft base build` and the coordinator mean the same store.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from fedpeft.errors import ConfigInvalid
from fedpeft.files import SHARED, expanded, write_file
from fedpeft.home_schema import expect_schema, keep_schema, schema_of
from fedpeft.secagg.primitives import IdentityKey

__all__ = ["SCHEMA", "AdapterAccess", "CoordinatorHome", "Settings", "default_coordinator_home"]

SCHEMA = 5
"""Of the home's files; see ``fedpeft.home_schema`` and ``CoordinatorHome.upgrade``."""

MOST_RUNS = 4
"""A device keeps what it needs to check a state for so many runs (``fedpeft.round.device.last_runs``)."""
AdapterAccess = Literal["participants", "enrolled", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `fedpeft coordinator init` decided; changed by editing coordinator.json while the coordinator is down.

    Args:
        hosts: names and addresses in the server's certificate; devices are told the first.
        bind: address that the public listeners bind to.
        fleet_port: HTTPS gateway in front of Flower's Fleet routes; public.
        service_port: gRPC with the device's certificate: base, wake-ups, renewal; public.
        enrol_port: gRPC without one: enrolment alone; public.
        metrics_port: /metrics, /livez, /readyz; loopback only.
        admin_bind: address of the administration port; other machines reach it only if it is not loopback.
        admin_port: HTTPS, the administration API and its page; 0: there is none.
        adapters: who may fetch a run's adapter: devices that were in its sums, every enrolled one, or nobody.
        runs_at_once: so many runs are worked on at a time, in 1..4; each has a process with its base in memory.
    """

    hosts: tuple[str, ...]
    bind: str = "0.0.0.0"  # noqa: S104  a coordinator is there to be reached; `init --bind` narrows it
    fleet_port: int = 8443
    service_port: int = 8444
    enrol_port: int = 8445
    metrics_port: int = 8447
    admin_bind: str = "127.0.0.1"
    admin_port: int = 0
    adapters: AdapterAccess = "participants"
    runs_at_once: int = 2

    def __post_init__(self) -> None:
        ports = self.ports()
        if not self.hosts or not all(0 < port < 65536 for port in ports) or len(set(ports)) != len(ports):
            raise ConfigInvalid(
                f"Expected a host and different ports in 1..65535, or one port for fleet, service and enrolment, found "
                f"hosts={list(self.hosts)} ports={list(ports)}; give others to `fedpeft coordinator init`."
            )
        if not 1 <= self.runs_at_once <= MOST_RUNS:
            raise ConfigInvalid(f"Expected runs_at_once in 1..{MOST_RUNS}, found {self.runs_at_once}.")

    @property
    def one_port(self) -> bool:
        """Whether devices reach everything on one port; see ``fedpeft_server.service.one_port``."""
        return self.fleet_port == self.service_port == self.enrol_port

    def public_ports(self) -> dict[str, int]:
        """What devices must reach, by what it is for."""
        if self.one_port:
            return {"public": self.fleet_port}
        return {"fleet": self.fleet_port, "service": self.service_port, "enrol": self.enrol_port}

    def ports(self) -> tuple[int, ...]:
        """The public ones, metrics, and administration where there is one."""
        always = (*self.public_ports().values(), self.metrics_port)
        return (*always, self.admin_port) if self.admin_port else always

    def to_json(self) -> str:
        """For people to read and to edit."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The inverse of ``to_json``.

        Raises:
            ConfigInvalid: not JSON, unknown or missing keys, a value that cannot be.
        """
        try:
            content = json.loads(text)
            known = {field.name: field.type for field in fields(cls)}
            if isinstance(content, dict):
                content = {**_LATER, **content}  # homes of before have no such keys
            if not isinstance(content, dict) or set(content) != set(known):
                raise ValueError(f"keys {sorted(content)}; expected {sorted(known)}")
            hosts = content.pop("hosts")
            if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
                raise ValueError(f"hosts={hosts!r}")
            if content["adapters"] not in get_args(AdapterAccess):
                raise ValueError(f"adapters={content['adapters']!r}; expected {', '.join(get_args(AdapterAccess))}")
            for name, value in content.items():
                if type(value) is not (str if name in ("bind", "admin_bind", "adapters") else int):
                    raise ValueError(f"{name}={value!r}")
            return cls(hosts=tuple(hosts), **content)
        except (ValueError, TypeError) as error:
            raise ConfigInvalid(f"Expected coordinator.json as `init` writes it, found {error}.") from error


_LATER = {"adapters": "participants", "admin_bind": "127.0.0.1", "admin_port": 0, "runs_at_once": 2}
"""Keys that ``init`` did not always write, and what a home without them meant."""


def default_coordinator_home() -> Path:
    """``$FEDPEFT_HOME``, or ``~/.local/share/fedpeft/coordinator``."""
    home = os.environ.get("FEDPEFT_HOME")
    return expanded(home) if home else Path.home() / ".local/share/fedpeft/coordinator"


class CoordinatorHome:
    """Paths in a coordinator's home, and the two things that everybody reads from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "coordinator.json"
        self.pki = path / "pki"
        self.ca_certificate, self.ca_key = self.pki / "ca.crt", self.pki / "ca.key"
        self.server_certificate, self.server_key = self.pki / "server.crt", self.pki / "server.key"
        self.identity_seed = self.pki / "identity.seed"
        self.registry, self.objects = path / "registry.sqlite", path / "objects"
        self.audit, self.webhooks = path / "audit.jsonl", path / "webhooks"
        self.bases, self.runs, self.logs = path / "bases", path / "runs", path / "logs"

    @property
    def exists(self) -> bool:
        """Whether `init` finished here: coordinator.json is written last."""
        return self.settings_file.is_file()

    def settings(self) -> Settings:
        """What `init` decided.

        Raises:
            ConfigInvalid: no coordinator was initialised here, or its settings were damaged.
            IntegrityFailed: the home was written by a later version.
        """
        expect_schema(self.path, SCHEMA)
        try:
            return Settings.from_json(self.settings_file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigInvalid(
                f"Expected a coordinator's home in {self.path}, found {error.strerror}; "
                f"make it with `fedpeft coordinator init --home {self.path} --host NAME`, or name another with --home."
            ) from error

    def identity(self) -> IdentityKey:
        """The key that signs the terms of every round; devices were told its public half when they enrolled."""
        self.settings()
        return IdentityKey.from_bytes(self.identity_seed.read_bytes())

    def upgrade(self) -> tuple[int, int]:
        """Brings the files to the present form: the one they had, and the one they have. Its caller owns the home.

        From 1 to 2: coordinator.json names the administration port (none), which an earlier program would not take.
        From 2 to 3: it says how many runs are worked on at once, and a submitted run has a priority and a group.
        From 3 to 4: a submitted run names devices that it never asks.
        From 4 to 5: it says when it begins and how often it is repeated; there are webhooks.

        Raises:
            ConfigInvalid: no coordinator was initialised here.
            IntegrityFailed: the home was written by a later version.
        """
        settings, (before, _) = self.settings(), schema_of(self.path)
        if before < SCHEMA:
            self.write_settings(settings)
        keep_schema(self.path, SCHEMA)
        return before, SCHEMA

    def write_settings(self, settings: Settings) -> None:
        """The last step of `init`."""
        write_file(self.settings_file, settings.to_json().encode(), mode=SHARED)
