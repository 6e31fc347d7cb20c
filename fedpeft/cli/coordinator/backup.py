"""`fedpeft coordinator backup | restore`: a home as one file, and back."""

from pathlib import Path

import click

from fedpeft.cli.homes import coordinator_home, coordinator_home_option
from fedpeft.cli.options import json_option, say_json

__all__ = ["backup", "restore"]


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@coordinator_home_option
@click.option(
    "--no-bases", is_flag=True, help="Leave base models out. `base build` makes them again, with the same digests."
)
@json_option
def backup(target: Path, home: Path | None, no_bases: bool, as_json: bool) -> None:
    """Back up the home. TARGET is a new file, or a folder, where the file is named by date and time.

    The coordinator may keep running. The file holds the federation's private keys: protect it like them.
    """
    from fedpeft.clock import SystemClock
    from fedpeft_server.backup.save import back_up

    path, made = back_up(coordinator_home(home), target, clock=SystemClock(), bases=not no_bases)
    if as_json:
        say_json({"file": str(path), "running": made.running, "audit_head": made.audit_head, "files": len(made.files)})
        return
    click.echo(f"{path}: {len(made.files)} files, {path.stat().st_size / 2**20:.1f} MiB, mode 0600")
    click.echo(f"  audit log up to {made.audit_head}")
    if made.running:
        click.echo("  the coordinator was running: after a restore, its runs can be read but do not continue")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@coordinator_home_option
@click.option(
    "--nothing-since",
    is_flag=True,
    help="Promise that the coordinator has not run since the backup was taken; then its runs may continue.",
)
@json_option
def restore(archive: Path, home: Path | None, nothing_since: bool, as_json: bool) -> None:
    """Restore a home from ARCHIVE, a file that `backup` wrote. --home must not exist yet.

    Its runs can be read and do not go on, its queued runs are held back, its join tokens are revoked: devices may have
    been in later rounds, and later decisions about devices are not in it.
    """
    from fedpeft.clock import SystemClock
    from fedpeft.terminal import printable
    from fedpeft_server.backup.restore import restore as put_back

    where = coordinator_home(home).path
    made, ended = put_back(archive, where, clock=SystemClock(), nothing_since=nothing_since)
    if as_json:
        say_json({"home": str(where), "of": made.at, "audit_head": made.audit_head, "ended": ended})
        return
    click.echo(f"{where}: as it was on {printable(made.at)}, audit log up to {made.audit_head[:16]}")
    if ended:
        click.echo(f"  {ended} unfinished runs do not continue; see `fedpeft coordinator status`")
    click.echo("  join tokens are revoked; decisions about devices made since the backup are undone: see")
    click.echo("  `fedpeft coordinator clients ls`, and revoke again before `fedpeft coordinator up`")
