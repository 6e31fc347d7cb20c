"""`fedpeft client reset-ledger`: a device whose ledger was lost begins a new one."""

from pathlib import Path

import click

from fedpeft.cli.homes import device_home, device_home_option

__all__ = ["reset_ledger"]


@click.command(name="reset-ledger")
@device_home_option
def reset_ledger(home: Path | None) -> None:
    """Start a new ledger after the old one was lost. The device sits out one round of each run."""
    from fedpeft_client.process.reset import reset_ledger as reset

    lost = reset(device_home(home))
    click.echo(f"was: {lost}")
    click.echo(
        "a new ledger: this device sits out the first round of each run that it hears of, and joins at the next; where "
        "the state of single runs was damaged, those alone sit out what is left of their last round"
    )
