"""`fedpeft client join`: ask a coordinator to be admitted, with a join token."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.homes import device_home, device_home_option
from fedpeft.cli.options import FiniteFloat
from fedpeft.terminal import quoted

if TYPE_CHECKING:
    from fedpeft_client.home import DeviceHome

__all__ = ["join"]


@click.command()
@click.argument("token", required=False)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Read the token from a file, to keep it out of process lists and shell history.",
)
@device_home_option
@click.option("--name", default=None, help="The device's name in the federation. Default: the host name.")
@click.option(
    "--organisation",
    default="",
    help="Organisation responsible for the device. Default: the token's, else the device's name.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    help="The device's examples; the path is written into site.toml.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for base models; devices on one machine may share it.",
)
@click.option(
    "--wait", "wait_s", type=FiniteFloat(min=0), default=600.0, show_default=True, help="Seconds to wait for approval."
)
def join(
    token: str | None,
    token_file: Path | None,
    home: Path | None,
    name: str | None,
    organisation: str,
    data: Path | None,
    cache: Path | None,
    wait_s: float,
) -> None:
    """Join a federation with the TOKEN from its operator.

    Without TOKEN it goes on waiting for an approval that was asked for before. Keys are made here and stay here.
    """
    import platform
    import time

    from fedpeft.clock import SystemClock
    from fedpeft.directory_lock import DirectoryLock
    from fedpeft.entropy import os_entropy
    from fedpeft.errors import NotEnrolled
    from fedpeft.files import read_text
    from fedpeft.planner import probe
    from fedpeft_client.enrolment.join import JoinOptions, pending
    from fedpeft_client.enrolment.join import join as join_federation

    where = device_home(home)
    if token_file is not None:
        if token is not None:
            raise click.UsageError("Expected TOKEN or --token-file, found both.")
        try:
            token = read_text(token_file)
        except ValueError as error:
            raise NotEnrolled(f"{token_file}: {error}.") from error
    options = pending(where) if token is None else None
    if options is None:
        if token is None:
            raise click.UsageError("Expected a TOKEN, or a device that waits for approval; found neither.")
        options = JoinOptions(
            token=token,
            device=name or _plain(platform.node()),
            organisation=organisation,
            bases=str(cache.absolute()) if cache else "",
            profile=probe().to_json(),
        )

    def show(code: str) -> None:
        click.echo(f"waiting for the operator's approval; tell them this code: {code}")
        click.echo(f"  fedpeft coordinator clients approve {options.device} --code {code}")

    where.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with DirectoryLock(where.path):
        if data is not None:
            _write_site(where, data)
        enrolment = join_federation(
            where,
            options,
            clock=SystemClock(),
            entropy=os_entropy,
            wait_s=wait_s,
            pause=time.sleep,
            on_waiting=show,
        )
    if enrolment is None:
        click.echo("not approved yet; the request is kept: `fedpeft client join` goes on waiting")
        return
    click.echo(f"{enrolment.device} of {enrolment.organisation} is enrolled at {enrolment.host}")
    click.echo(
        f"next: {quoted('fedpeft', 'client', 'run', '--home', where.path)}" if home else "next: fedpeft client run"
    )


def _write_site(where: "DeviceHome", data: Path) -> None:
    """The site's rules with every default; an existing file is the site's own and stays."""
    from fedpeft.files import write_file
    from fedpeft_client.site import Site, SiteData

    if where.site.is_file():
        click.echo(f"{where.site} is there already and stays as it is; --data was not written into it", err=True)
        return
    write_file(where.site, Site(data=SiteData(source=str(data.absolute()))).to_toml().encode())
    click.echo(f"wrote {where.site}: what this device lends and permits; edit it before `fedpeft client run`")


def _plain(name: str) -> str:
    """A machine's name as a device's name."""
    import re

    return re.sub(r"[^A-Za-z0-9._-]", "-", name.split(".", maxsplit=1)[0])[:63].strip("-._") or "device"
