"""`fedpeft coordinator`: the commands of whoever runs a federation."""

import click

from fedpeft.cli.admission import commands as admission

__all__ = ["command"]


@click.group(name="coordinator", short_help="Run a coordinator: its devices, its runs.")
def command() -> None:
    """Run a coordinator: one process that devices connect to and that works through the submitted runs."""


for part in admission:
    command.add_command(part)
