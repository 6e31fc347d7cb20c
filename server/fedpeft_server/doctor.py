"""`fedpeft doctor --role coordinator`: is this home fit to run?"""

import shlex
import socket

from fedpeft.base.store import ArtifactStore
from fedpeft.clock import Clock
from fedpeft.deployment.doctor import CheckResult, answers_tls, check, disk, private
from fedpeft.errors import ConfigInvalid
from fedpeft_server.enrolment.audit_log import AuditLog
from fedpeft_server.enrolment.certificate_authority import Authority, certificate_expiry
from fedpeft_server.enrolment.registry import Status, open_registry
from fedpeft_server.home import CoordinatorHome

__all__ = ["check_coordinator"]

_NEED_BYTES = 2 << 30


def check_coordinator(home: CoordinatorHome, clock: Clock) -> tuple[CheckResult, ...]:
    """Every check, in the order in which they should be mended; changes nothing."""
    first = check("home", lambda: f"{home.path}, for {', '.join(home.settings().hosts)}")
    if not first.sound:
        return (first,)

    def authority() -> str:
        pin, identity = Authority.of_home(home, clock).fingerprint.hex(), home.identity().public.hex()
        return f"sha256 {pin[:16]}..., identity {identity[:16]}..."

    def server_certificate() -> str:
        left = certificate_expiry(home.server_certificate.read_bytes()) - clock.utc()
        if left.days < 1:
            raise ConfigInvalid("Expected a server certificate that is valid, found it expired; `up` makes a new one.")
        return f"valid for {left.days} days"

    def registry() -> str:
        opened = open_registry(home.registry, home.audit)
        try:
            counts = {status: len(opened.devices(status)) for status in Status}
        finally:
            opened.close()
        return ", ".join(f"{count} {status.value}" for status, count in counts.items() if count) or "no devices yet"

    def audit() -> str:
        log = AuditLog(home.audit, clock)
        return f"{sum(1 for _ in log.records())} records, head {log.head()[:16]}..."

    def bases() -> str:
        found = ArtifactStore(home.bases).verify()
        if not found:
            place = shlex.quote(str(home.path))
            raise ConfigInvalid(f"Expected a base to hand out, found none; `fedpeft base build MODEL --home {place}`.")
        return ", ".join(f"{artifact.digest[:15]}... ({artifact.size_bytes / 2**20:.0f} MiB)" for artifact in found)

    return (
        first,
        check("authority", authority),
        private((home.ca_key, home.server_key, home.identity_seed, home.registry, home.audit)),
        check("certificate", server_certificate),
        check("registry", registry),
        check("audit log", audit),
        check("bases", bases),
        disk(home.path, need_bytes=_NEED_BYTES),
        *_ports(home),
    )


def _ports(home: CoordinatorHome) -> tuple[CheckResult, ...]:
    """Each port is free, or our own coordinator answers there."""
    settings = home.settings()
    findings = []
    public = [(f"{name} port", settings.bind, port) for name, port in settings.public_ports().items()]
    admin = (("admin port", settings.admin_bind, settings.admin_port),) if settings.admin_port else ()
    for name, bind, port in (*public, *admin):
        if _is_free(bind, port):
            findings.append(CheckResult(check=name, sound=True, result=f"{port} is free: the coordinator is down"))
        elif trouble := answers_tls(_local(home), port, home.ca_certificate):
            remedy = f"see who has it (`ss -ltnp sport = :{port}`), or change coordinator.json"
            result = f"{port} is taken, and not by this coordinator: {trouble}"
            findings.append(CheckResult(check=name, sound=False, result=result, remedy=remedy, exit_code=8))
        else:
            findings.append(CheckResult(check=name, sound=True, result=f"{port}: the coordinator answers"))
    return tuple(findings)


def _local(home: CoordinatorHome) -> str:
    """A name under which the coordinator can be reached from here and that its certificate has."""
    settings = home.settings()
    return settings.bind if settings.bind in settings.hosts else settings.hosts[0]


def _is_free(bind: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except OSError:
            return False
    return True
