"""`fedpeft coordinator`: the commands of whoever runs a federation, one file each."""

import click

from fedpeft.cli.coordinator import admin, backup, clients, init, runs, token, up, webhook

__all__ = ["command"]


@click.group(name="coordinator", short_help="Run a coordinator: its devices, its runs.")
def command() -> None:
    """Run a coordinator: one process that devices connect to and that works through the submitted runs."""


for part in (
    init.init,
    token.token,
    clients.clients,
    up.up,
    runs.submit,
    runs.status,
    runs.stop,
    runs.resume,
    runs.runs,
    admin.admin_token,
    admin.audit,
    admin.prune,
    admin.upgrade,
    backup.backup,
    backup.restore,
    webhook.webhook,
):
    command.add_command(part)
