"""`fedpeft coordinator clients`: who may take part: list, approve, deny, revoke, forget."""

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from fedpeft.cli.coordinator.opened import opened
from fedpeft.cli.homes import coordinator_home_option
from fedpeft.cli.options import json_option, quoted, say_json

if TYPE_CHECKING:
    from fedpeft_server.enrolment.registry import EnrolledDevice

__all__ = ["clients"]


@click.group()
def clients() -> None:
    """List, approve, deny and revoke devices."""


@clients.command(name="ls")
@coordinator_home_option
@json_option
def list_clients(home: Path | None, as_json: bool) -> None:
    """List every device: name, status, organisation, hardware."""
    with opened(home) as (where, registry, _):
        devices = registry.devices()
        if as_json:
            say_json([_device_json(device) for device in devices])
            return
        for device in devices:
            click.echo(_line(device))
        if not devices:
            invitation = quoted("fedpeft", "coordinator", "token", "create", "--home", where.path)
            click.echo(f"no devices; `{invitation}` invites one", err=True)


@clients.command()
@coordinator_home_option
@json_option
def pending(home: Path | None, as_json: bool) -> None:
    """List the devices that wait for approval, with the code that each must show."""
    from fedpeft_server.enrolment.registry import Status

    with opened(home) as (_, registry, _):
        waiting = registry.devices(Status.PENDING)
        if as_json:
            say_json([_device_json(device) for device in waiting])
            return
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
    with opened(home) as (_, _, admission):
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
    with opened(home) as (_, _, admission):
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
    with opened(home) as (_, _, admission):
        admission.delete(name)
    click.echo(f"{name} is forgotten")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="The device is told.")
@coordinator_home_option
def deny(name: str, reason: str, home: Path | None) -> None:
    """Turn the waiting device NAME away."""
    with opened(home) as (_, _, admission):
        admission.deny(name, reason)
    click.echo(f"{name} is turned away")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="The device is told.")
@coordinator_home_option
def revoke(name: str, reason: str, home: Path | None) -> None:
    """Put the device NAME out, from its next request on; its update of a round at work is dropped."""
    with opened(home) as (_, _, admission):
        admission.revoke(name, reason)
    click.echo(f"{name} is out; its keys are never accepted again")


@clients.command()
@click.argument("name")
@coordinator_home_option
@json_option
def show(name: str, home: Path | None, as_json: bool) -> None:
    """Show all that is known about the device NAME."""
    import hashlib

    from fedpeft.terminal import printable
    from fedpeft_server.enrolment.certificate_authority import certificate_expiry

    with opened(home) as (_, registry, _):
        device = registry.device(name)
    if as_json:
        say_json(_device_json(device))
        return
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


def _device_json(device: "EnrolledDevice") -> dict[str, object]:
    return {
        "name": device.name,
        "status": device.status.value,
        "organisation": device.organisation,
        "since": device.since,
        "code": device.code,
        "identity": device.identity.hex(),
        "serial": device.serial,
        "reason": device.reason,
    }


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
