"""`fedpeft client`: the commands of whoever runs a device, one file each."""

import click

from fedpeft.cli.client import adapter, directory, join, leave, reset_ledger, rotate_key, run, runs, status

__all__ = ["command"]


@click.group(name="client", short_help="Run a device of a federation.")
def command() -> None:
    """Run a device: it trains on its own examples, which never leave it, under the rules in its site.toml."""


for part in (
    join.join,
    status.status,
    leave.leave,
    rotate_key.rotate_key,
    run.run,
    runs.runs,
    reset_ledger.reset_ledger,
    directory.directory,
    adapter.adapter,
):
    command.add_command(part)
