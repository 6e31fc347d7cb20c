"""`fedpeft client status`: who this device is, and whether the coordinator still knows it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.homes import device_home, device_home_option
from fedpeft.cli.options import json_option, say_json

if TYPE_CHECKING:
    from fedpeft_client.home import DeviceHome, Enrolment

__all__ = ["status"]

LITTLE_ROOM_BYTES = 64 << 20


@click.command()
@device_home_option
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Show this device's identity and enrolment. Exits with 4 if the coordinator no longer accepts it."""
    from fedpeft_client.connection.grpc_client import Link
    from fedpeft_client.enrolment.join import pending
    from fedpeft_client.enrolment.membership import finish_rotation

    where = device_home(home)
    if not where.is_enrolled and (options := pending(where)) is not None:
        if as_json:
            say_json({"device": options.device, "state": "waits for approval"})
        else:
            click.echo(f"{options.device} waits for approval; `fedpeft client join` goes on waiting")
        return
    enrolment = where.enrolment()
    finish_rotation(where)
    facts = _facts(where, enrolment)
    if not as_json:  # before the coordinator is asked, who may not answer
        _show(facts)
    with Link.of_home(where) as link:
        greeting = link.greet()
    if as_json:
        say_json({"state": "enrolled", **facts, "coordinator_version": greeting.version})
    else:
        click.echo(f"  coordinator  answers, fedpeft {greeting.version}; this device is enrolled")


def _facts(where: "DeviceHome", enrolment: "Enrolment") -> dict[str, Any]:
    """What this machine knows without asking anybody."""
    import shutil

    from fedpeft.clock import SystemClock
    from fedpeft.directory_lock import holder
    from fedpeft_client.enrolment.membership import certificate_ends
    from fedpeft_client.process.troubles import TroubleLog
    from fedpeft_client.site_runs import SiteRuns

    return {
        "device": enrolment.device,
        "organisation": enrolment.organisation,
        "home": str(where.path),
        "coordinator": enrolment.fleet_url,
        "service": enrolment.service_target,
        "authority": enrolment.ca_fingerprint,
        "bases": str(where.bases()),
        "rules": str(where.site) if where.site.is_file() else None,
        "certificate_until": certificate_ends(where).isoformat(timespec="minutes"),
        "process": holder(where.path),
        "free_bytes": shutil.disk_usage(where.path).free,
        "runs_waiting": sum(record.waits for record in SiteRuns(where.runs, SystemClock()).records()),
        "troubles": [asdict(entry) for entry in TroubleLog(where.troubles, SystemClock()).entries()],
        "troubles_file": str(where.troubles),
    }


def _show(facts: dict[str, Any]) -> None:
    click.echo(f"{facts['device']} of {facts['organisation']}")
    click.echo(f"  home         {facts['home']}")
    click.echo(f"  coordinator  {facts['coordinator']}, service {facts['service']}")
    click.echo(f"  authority    sha256 {facts['authority']}")
    click.echo(f"  bases        {facts['bases']}")
    click.echo(f"  rules        {facts['rules'] or 'none: join with --data, or write site.toml'}")
    click.echo(f"  certificate  until {facts['certificate_until']}")
    if facts["process"] is not None:
        click.echo(f"  at work      `fedpeft client run`, process {facts['process']}")
    if facts["free_bytes"] < LITTLE_ROOM_BYTES:
        free = f"{facts['free_bytes'] >> 20} MiB free at {facts['home']}"
        click.echo(f"  disk         {free}: rounds will fail; make room")
    if facts["runs_waiting"]:
        click.echo(f"  waiting      {facts['runs_waiting']} runs without an answer: `fedpeft client runs pending`")
    _show_troubles(facts["troubles"], facts["troubles_file"])


def _show_troubles(entries: list[dict[str, Any]], file: str) -> None:
    """What went wrong here of late; only this machine knows it."""
    from fedpeft.terminal import printable

    click.echo(f"  troubles     {len(entries) or 'none'}{f', all in {file}' if entries else ''}")
    for entry in entries[-3:]:
        run = printable(entry["run_id"]) or "an unread request"
        click.echo(f"    {entry['at']}  round {entry['round_id']} of {run}: {printable(entry['cause'])}")
