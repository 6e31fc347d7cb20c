"""`fedpeft client directory`: the other devices, as this one has met them in rounds."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from fedpeft.cli.homes import device_home, device_home_option

__all__ = ["directory"]


@click.command()
@device_home_option
@click.option("--confirm", is_flag=True, help="Confirm that every device met so far is genuine.")
@click.option("--forget", metavar="DEVICE", help="Forget one device, e.g. because it enrolled again with new keys.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def directory(home: Path | None, confirm: bool, forget: str | None, as_json: bool) -> None:
    """List the other devices met in rounds. Compare the fingerprint with other sites, e.g. by telephone.

    policy.directory in site.toml decides about rounds with new devices, or with changed keys.
    """
    from fedpeft.errors import ResourceMissing
    from fedpeft.terminal import printable
    from fedpeft_client.enrolment.directory import SiteDirectory

    where = device_home(home)
    where.last_enrolment()
    known = SiteDirectory(where)
    if forget is not None and not known.forget(forget):
        raise ResourceMissing(f"Expected a device of the directory, found no {forget!r} in it.")
    new = known.confirm() if confirm else 0
    entries = known.entries()
    if as_json:
        rows = [asdict(entry) for entry in entries]
        click.echo(json.dumps({"fingerprint": known.fingerprint(), "devices": rows}, indent=2))
        return
    for entry in entries:
        mark = "" if entry.confirmed else "  not confirmed"
        click.echo(f"{printable(entry.device):24} {printable(entry.organisation):24} {entry.identity[:16]}{mark}")
    click.echo(f"{len(entries)} devices, fingerprint {known.fingerprint()}")
    if confirm:
        click.echo(f"{new} of them newly confirmed")
