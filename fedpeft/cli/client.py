"""`fedpeft client`: the commands of whoever runs a device."""

import click

from fedpeft.cli.directory import commands as directory
from fedpeft.cli.joining import commands as joining
from fedpeft.cli.resident import commands as resident

__all__ = ["command"]


@click.group(name="client", short_help="Run a device of a federation.")
def command() -> None:
    """Run a device: it trains on its own examples, which stay on it, under the rules in its site.toml."""


for part in (*joining, *resident, *directory):
    command.add_command(part)
