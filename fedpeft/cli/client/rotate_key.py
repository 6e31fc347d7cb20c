"""`fedpeft client rotate-key`: a new key for this device's certificate."""

from pathlib import Path

import click

from fedpeft.cli.homes import device_home, device_home_option

__all__ = ["rotate_key"]


@click.command(name="rotate-key")
@device_home_option
def rotate_key(home: Path | None) -> None:
    """Replace the device's key and certificate. The old key is no longer accepted."""
    from fedpeft.directory_lock import holder
    from fedpeft_client.enrolment.membership import certificate_ends
    from fedpeft_client.enrolment.membership import rotate_key as rotate

    where = device_home(home)
    rotate(where)
    ends = certificate_ends(where).isoformat(timespec="minutes")
    click.echo(f"new key, certificate until {ends}")
    if (pid := holder(where.path)) is not None:
        click.echo(f"`fedpeft client run` (process {pid}) goes on with it by itself")
