"""`fedpeft coordinator init | token | clients`: who may take part."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from fedpeft.cli.homes import coordinator_home, coordinator_home_option
from fedpeft.cli.options import quoted

if TYPE_CHECKING:
    from fedpeft.deployment.token import JoinToken
    from fedpeft_server.enrolment.admission import Admission
    from fedpeft_server.enrolment.registry import EnrolledDevice, Registry
    from fedpeft_server.home import CoordinatorHome

__all__ = ["commands", "issue"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@coordinator_home_option
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address that devices reach; repeatable.")
@click.option("--bind", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104  see Settings
@click.option("--fleet-port", type=click.IntRange(1, 65535), default=8443, show_default=True)
@click.option("--service-port", type=click.IntRange(1, 65535), default=8444, show_default=True)
@click.option("--enrol-port", type=click.IntRange(1, 65535), default=8445, show_default=True)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8447, show_default=True, help="Loopback.")
def init(
    home: Path | None,
    hosts: tuple[str, ...],
    bind: str,
    fleet_port: int,
    service_port: int,
    enrol_port: int,
    metrics_port: int,
) -> None:
    """Make a coordinator's home: its certificate authority, its keys, its settings."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_server.enrolment.certificate_authority import initialise
    from fedpeft_server.home import Settings

    where = coordinator_home(home)
    settings = Settings(
        hosts=hosts,
        bind=bind,
        fleet_port=fleet_port,
        service_port=service_port,
        enrol_port=enrol_port,
        metrics_port=metrics_port,
    )
    authority = initialise(where, settings, clock=SystemClock(), entropy=os_entropy)
    click.echo(f"coordinator made in {where.path}")
    click.echo(f"  authority sha256  {authority.fingerprint.hex()}")
    click.echo(f"  devices reach     {hosts[0]} on ports {fleet_port}, {service_port}, {enrol_port}: open these three")
    place = quoted("--home", where.path)
    click.echo(f"next: fedpeft base build MODEL --quantize nf4 {place}")
    click.echo(f"      fedpeft coordinator up {place}")
    click.echo(f"      fedpeft coordinator token create {place}")


@click.group()
def token() -> None:
    """Make, list and revoke the words that devices join with."""


@token.command()
@coordinator_home_option
@click.option("--ttl", default="24h", show_default=True, help="How long it is good, e.g. 30m, 24h, 7d.")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many devices it admits.")
@click.option("--organisation", default="", help="Whose devices these are; cohorts are counted in organisations.")
@click.option("--auto-approve", is_flag=True, help="Admit without approval: whoever has the word is in.")
def create(home: Path | None, ttl: str, uses: int, organisation: str, auto_approve: bool) -> None:
    """Make a join token and print the command that uses it. The word is a secret: it is shown once."""
    with _opened(home) as (where, registry, _):
        made = issue(
            where, registry, ttl_s=_seconds(ttl), uses=uses, auto_approve=auto_approve, organisation=organisation
        )
    click.echo(f"token {made.token_id}, for {uses} device(s), good for {ttl}:", err=True)
    click.echo(f"fedpeft client join {made.to_text()}")


def issue(
    home: "CoordinatorHome",
    registry: "Registry",
    *,
    ttl_s: float,
    uses: int,
    auto_approve: bool = False,
    organisation: str = "",
) -> "JoinToken":
    """A new token, audited."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.enrolment.certificate_authority import Authority
    from fedpeft_server.enrolment.join_tokens import Tokens

    settings, clock = home.settings(), SystemClock()
    made = Tokens(registry, clock).create(
        host=settings.hosts[0],
        enrol_port=settings.enrol_port,
        ca_fingerprint=Authority.of_home(home, clock).fingerprint,
        ttl_s=ttl_s,
        uses=uses,
        auto_approve=auto_approve,
        organisation=organisation,
        entropy=os_entropy,
    )
    detail = {"uses": uses, "ttl_s": ttl_s, "approval": "automatic" if auto_approve else "by code"}
    AuditLog(home.audit, clock).append(AuditEvent.TOKEN_CREATED, actor="operator", subject=made.token_id, detail=detail)
    return made


@token.command(name="ls")
@coordinator_home_option
def list_tokens(home: Path | None) -> None:
    """List the tokens: uses, expiry, approval. Secrets are not kept, so they cannot be shown again."""
    from datetime import UTC, datetime

    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.join_tokens import Tokens

    with _opened(home) as (_, registry, _):
        for record in Tokens(registry, SystemClock()).ls():
            expires = datetime.fromtimestamp(record.expires_utc, UTC).isoformat(timespec="minutes")
            over = record.revoked or SystemClock().utc().timestamp() > record.expires_utc
            state = "revoked" if record.revoked else "expired" if over else "good"
            approval = "automatic" if record.auto_approve else "by code"
            click.echo(
                f"{record.token_id}  {state:<8} {record.used}/{record.uses} used  until {expires}  "
                f"{approval:<9}  {record.organisation}"
            )


@token.command(name="revoke")
@click.argument("token_id")
@coordinator_home_option
def revoke_token(token_id: str, home: Path | None) -> None:
    """Admit nobody else by TOKEN_ID; devices that it admitted stay."""
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.enrolment.join_tokens import Tokens

    with _opened(home) as (where, registry, _):
        Tokens(registry, SystemClock()).revoke(token_id)
        AuditLog(where.audit, SystemClock()).append(AuditEvent.TOKEN_REVOKED, actor="operator", subject=token_id)
    click.echo(f"token {token_id} admits nobody else")


@click.group()
def clients() -> None:
    """List, approve, deny and revoke devices."""


@clients.command(name="ls")
@coordinator_home_option
def list_clients(home: Path | None) -> None:
    """List every device: name, status, organisation, hardware."""
    with _opened(home) as (where, registry, _):
        devices = registry.devices()
        for device in devices:
            click.echo(_line(device))
        if not devices:
            invitation = quoted("fedpeft", "coordinator", "token", "create", "--home", where.path)
            click.echo(f"no devices; `{invitation}` invites one", err=True)


@clients.command()
@coordinator_home_option
def pending(home: Path | None) -> None:
    """List the devices that wait for approval, with the code that each must show."""
    from fedpeft_server.enrolment.registry import Status

    with _opened(home) as (_, registry, _):
        waiting = registry.devices(Status.PENDING)
        for device in waiting:
            click.echo(f"{device.name:<24} code {device.code}  {device.organisation}  since {device.since[:19]}")
        if waiting:
            click.echo("compare the code with the device's owner, then: clients approve NAME --code CODE", err=True)
        else:
            click.echo("nobody waits", err=True)


@clients.command()
@click.argument("name")
@click.option("--code", required=True, help="What the device shows.")
@coordinator_home_option
def approve(name: str, code: str, home: Path | None) -> None:
    """Admit the device NAME that shows CODE."""
    with _opened(home) as (_, _, admission):
        device = admission.approve(name, code)
    click.echo(f"{name} of {device.organisation} is in; it goes on by itself")


@clients.command(name="approve-all")
@click.argument("file", type=click.File())
@coordinator_home_option
def approve_all(file: "TextIO", home: Path | None) -> int:
    """Admit the devices of FILE (`-`: standard input), one `NAME CODE` a line; says of each what became of it."""
    from fedpeft.errors import FedpeftError
    from fedpeft.terminal import printable

    failed = 0
    with _opened(home) as (_, _, admission):
        for line in file:
            if not line.strip() or line.startswith("#"):
                continue
            name, _, code = line.strip().partition(" ")
            try:
                click.echo(f"{name} of {admission.approve(name, code).organisation} is in")
            except FedpeftError as error:
                failed = error.exit_code
                click.echo(f"{printable(name)}: {printable(str(error))}", err=True)
    return failed


@clients.command()
@click.argument("name")
@coordinator_home_option
def delete(name: str, home: Path | None) -> None:
    """Forget the device NAME, which was denied, revoked, or left; its keys are never accepted again."""
    with _opened(home) as (_, _, admission):
        admission.delete(name)
    click.echo(f"{name} is forgotten")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="The device is told.")
@coordinator_home_option
def deny(name: str, reason: str, home: Path | None) -> None:
    """Turn the waiting device NAME away."""
    with _opened(home) as (_, _, admission):
        admission.deny(name, reason)
    click.echo(f"{name} is turned away")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="The device is told.")
@coordinator_home_option
def revoke(name: str, reason: str, home: Path | None) -> None:
    """Put the device NAME out, from its next request on; its update of a round at work is dropped."""
    with _opened(home) as (_, _, admission):
        admission.revoke(name, reason)
    click.echo(f"{name} is out; its keys are never accepted again")


@clients.command()
@click.argument("name")
@coordinator_home_option
def show(name: str, home: Path | None) -> None:
    """Show all that is known about the device NAME."""
    import hashlib

    from fedpeft.terminal import printable
    from fedpeft_server.enrolment.certificate_authority import certificate_expiry

    with _opened(home) as (_, registry, _):
        device = registry.device(name)
    click.echo(_line(device))
    click.echo(f"  since        {device.since}")
    click.echo(f"  identity     {device.identity.hex()}")
    click.echo(f"  node key     sha256:{hashlib.sha256(device.node_key).hexdigest()}, node {device.node_id or 'none'}")
    if device.certificate:
        expiry = certificate_expiry(device.certificate).isoformat(timespec="minutes")
        click.echo(f"  certificate  serial {device.serial}, until {expiry}")
    click.echo(f"  joined by    token {device.token_id}, code {device.code}")
    if device.reason:
        click.echo(f"  reason       {printable(device.reason)}")


def _line(device: "EnrolledDevice") -> str:
    from fedpeft.clock import SystemClock
    from fedpeft.errors import IntegrityFailed
    from fedpeft.planner import DeviceProfile
    from fedpeft_server.enrolment.certificate_authority import certificate_expiry
    from fedpeft_server.enrolment.registry import Status

    try:
        profile = DeviceProfile.from_json(device.profile)
        hardware = f"{profile.cores} cores, {profile.total_bytes / 2**30:.0f} GiB"
        if profile.vram_bytes:
            hardware += f", GPU {profile.vram_bytes / 2**30:.0f} GiB"
    except IntegrityFailed:  # of a version that checked less
        hardware = "hardware unknown"
    until, status = "", device.status.value
    if device.certificate:
        ends, now = certificate_expiry(device.certificate), SystemClock().utc()
        until = f"  certificate {'ended' if ends <= now else 'until'} {ends:%Y-%m-%d}"
        status = "expired" if ends <= now and device.status is Status.ACTIVE else status
    return f"{device.name:<24} {status:<8} {device.organisation:<24} {hardware}{until}"


@contextmanager
def _opened(home: Path | None) -> "Iterator[tuple[CoordinatorHome, Registry, Admission]]":
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.admission import Admission
    from fedpeft_server.enrolment.audit_log import AuditLog
    from fedpeft_server.enrolment.registry import open_registry

    where, clock = coordinator_home(home), SystemClock()
    where.settings()
    registry = open_registry(where.registry, where.audit)
    try:
        yield where, registry, Admission(where, registry, AuditLog(where.audit, clock), clock)
    finally:
        registry.close()


def _seconds(text: str) -> float:
    if not (found := re.fullmatch(r"(\d{1,6})([smhd])", text)):
        raise click.BadParameter(f"expected a duration such as 30m, 24h or 7d, found {text!r}", param_hint="--ttl")
    return float(int(found[1]) * _UNITS_S[found[2]])


commands = (init, token, clients)
"""For the group ``fedpeft.cli.coordinator``."""
