"""`fedpeft coordinator`: the commands of whoever runs a federation."""

import click

from fedpeft.cli.admission import commands as admission
from fedpeft.cli.operation import commands as operation

__all__ = ["command"]


@click.group(name="coordinator", short_help="Run a coordinator: its devices, its runs.")
def command() -> None:
    """Run a coordinator: one process that devices connect to and that works through the submitted runs."""


for part in (*admission, *operation):
    command.add_command(part)
