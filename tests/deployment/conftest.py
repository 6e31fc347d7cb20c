"""A coordinator's gRPC service and its devices, on loopback, with real keys: what these tests share."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpeft.clock import Clock, SystemClock
from fedpeft.entropy import os_entropy
from fedpeft.planner import REFERENCE
from fedpeft_client.enrolment.join import JoinOptions, join
from fedpeft_client.home import DeviceHome, Enrolment
from fedpeft_server.enrolment.admission import Admission
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, initialise
from fedpeft_server.enrolment.join_tokens import Tokens
from fedpeft_server.enrolment.registry import Registry
from fedpeft_server.home import CoordinatorHome, Settings
from fedpeft_server.service.grpc_service import FleetService
from fedpeft_server.service.wakeups import Wakeups


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody had a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Coordinator:
    """A coordinator without the round engine."""

    home: CoordinatorHome
    registry: Registry
    admission: Admission
    audit: AuditLog
    board: Wakeups
    service: FleetService
    tokens: Tokens

    def token(
        self, *, uses: int = 1, auto: bool = True, ttl_s: float = 3600.0, organisation: str = "", **change
    ) -> str:
        """A join token's text; ``change`` replaces what it says about the coordinator."""
        settings = self.home.settings()
        about = {
            "host": settings.hosts[0],
            "enrol_port": settings.enrol_port,
            "ca_fingerprint": Authority.of_home(self.home, SystemClock()).fingerprint,
        } | change
        token = self.tokens.create(
            **about, ttl_s=3600.0, uses=uses, auto_approve=auto, organisation=organisation, entropy=os_entropy
        )
        return token.to_text()

    def events(self) -> list[tuple[str, str]]:
        """(event, subject) of the audit log, which is checked."""
        return [(record.event.value, record.subject) for record in self.audit.records()]


def start_coordinator(path: Path, clock: Clock | None = None) -> Coordinator:
    """A new coordinator that serves."""
    clock = clock or SystemClock()
    home = CoordinatorHome(path)
    names = ("fleet_port", "service_port", "enrol_port", "metrics_port")
    settings = Settings(hosts=("127.0.0.1",), bind="127.0.0.1", **dict(zip(names, free_ports(4), strict=True)))
    initialise(home, settings, clock=clock, entropy=os_entropy)
    registry, audit, board = Registry(home.registry), AuditLog(home.audit, clock), Wakeups()
    admission = Admission(home, registry, audit, clock)
    service = FleetService(home, registry, admission, board, clock, gateway=socket.socket.close)
    service.start()
    return Coordinator(home, registry, admission, audit, board, service, Tokens(registry, clock))


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One coordinator for a module's tests."""
    running = start_coordinator(tmp_path_factory.mktemp("coordinator"))
    yield running
    running.service.stop()
    running.registry.close()


@pytest.fixture(scope="session")
def enrol() -> Callable[..., tuple[DeviceHome, Enrolment | None]]:
    """Joins a device with the home given."""

    def run(
        token: str,
        name: str,
        *,
        home: DeviceHome,
        clock: Clock | None = None,
        organisation: str = "",
        on_waiting: Callable[[str], None] = lambda code: None,
        pause: Callable[[float], object] = lambda seconds: None,
        wait_s: float = 0.0,
    ) -> tuple[DeviceHome, Enrolment | None]:
        profile = REFERENCE.to_json()
        options = JoinOptions(token=token, device=name, organisation=organisation, bases="", profile=profile)
        clock = clock or SystemClock()
        enrolment = join(
            home, options, clock=clock, entropy=os_entropy, wait_s=wait_s, pause=pause, on_waiting=on_waiting
        )
        return home, enrolment

    return run


@pytest.fixture
def device(tmp_path: Path, enrol: Callable) -> Callable[..., tuple[DeviceHome, Enrolment | None]]:
    """As ``enrol``, by default with a home named as the device."""
    return lambda token, name, *, home=None, **more: enrol(
        token, name, home=home or DeviceHome(tmp_path / name), **more
    )
