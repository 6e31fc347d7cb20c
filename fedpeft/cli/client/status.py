"""`fedpeft client status`: who this device is, and whether the coordinator still knows it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.homes import device_home, device_home_option

if TYPE_CHECKING:
    from fedpeft_client.home import DeviceHome, Enrolment

__all__ = ["status"]

LITTLE_ROOM_BYTES = 64 << 20


@click.command()
@device_home_option
def status(home: Path | None) -> None:
    """Show who this device is, and ask the coordinator whether it still counts; exits 4 when it does not."""
    import shutil

    from fedpeft.clock import SystemClock
    from fedpeft.directory_lock import holder
    from fedpeft_client.connection.grpc_client import Link
    from fedpeft_client.enrolment.join import pending
    from fedpeft_client.enrolment.membership import certificate_ends, finish_rotation
    from fedpeft_client.site_runs import SiteRuns

    where = device_home(home)
    if not where.is_enrolled and (wishes := pending(where)) is not None:
        click.echo(f"{wishes.device} waits for approval; `fedpeft client join` goes on waiting")
        return
    enrolment = where.enrolment()
    finish_rotation(where)
    _describe(where, enrolment)
    click.echo(f"  certificate  until {certificate_ends(where).isoformat(timespec='minutes')}")
    if (pid := holder(where.path)) is not None:
        click.echo(f"  at work      `fedpeft client run`, process {pid}")
    if (free := shutil.disk_usage(where.path).free) < LITTLE_ROOM_BYTES:
        click.echo(f"  disk         {free >> 20} MiB free at {where.path}: rounds will fail; make room")
    if waiting := sum(record.waits for record in SiteRuns(where.runs, SystemClock()).records()):
        click.echo(f"  waiting      {waiting} runs without an answer: `fedpeft client runs pending`")
    _last_troubles(where)
    with Link.of_home(where) as link:
        greeting = link.greet()
    click.echo(f"  coordinator  answers, fedpeft {greeting.version}; this device is enrolled")


def _last_troubles(where: "DeviceHome") -> None:
    """What went wrong here of late; only this machine knows it."""
    from fedpeft.clock import SystemClock
    from fedpeft.terminal import printable
    from fedpeft_client.process.troubles import TroubleLog

    entries = TroubleLog(where.troubles, SystemClock()).entries()
    click.echo(f"  troubles     {len(entries) or 'none'}{f', all in {where.troubles}' if entries else ''}")
    for entry in entries[-3:]:
        run = printable(entry.run_id) or "an unread request"
        click.echo(f"    {entry.at}  round {entry.round_id} of {run}: {printable(entry.cause)}")


def _describe(where: "DeviceHome", enrolment: "Enrolment") -> None:
    click.echo(f"{enrolment.device} of {enrolment.organisation}")
    click.echo(f"  home         {where.path}")
    click.echo(f"  coordinator  {enrolment.fleet_url}, service {enrolment.service_target}")
    click.echo(f"  authority    sha256 {enrolment.ca_fingerprint}")
    click.echo(f"  bases        {where.bases()}")
    click.echo(f"  rules        {where.site}{'' if where.site.is_file() else ' (none: join with --data, or write it)'}")
