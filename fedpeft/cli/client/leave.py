"""`fedpeft client leave`: the end of this device's membership."""

from pathlib import Path

import click

from fedpeft.cli.homes import device_home, device_home_option

__all__ = ["leave"]


@click.command()
@device_home_option
@click.option("--reason", default="", help="Shown to the operator.")
@click.option("--yes", is_flag=True, help="Do not prompt.")
def leave(home: Path | None, reason: str, yes: bool) -> None:
    """Leave the federation for good. Tells the coordinator, deletes the keys, keeps site.toml and bases."""
    from fedpeft.directory_lock import holder
    from fedpeft_client.enrolment.membership import leave as leave_federation

    where = device_home(home)
    enrolment = where.enrolment()
    if not yes:
        click.confirm(
            f"{enrolment.device} leaves {enrolment.host}; joining again needs a new token. Go on?", abort=True
        )
    leave_federation(where, reason)
    click.echo(f"{enrolment.device} has left {enrolment.host}")
    if (pid := holder(where.path)) is not None:
        click.echo(f"`fedpeft client run` (process {pid}) hears of it and ends with exit code 4")
