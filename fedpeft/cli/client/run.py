"""`fedpeft client run`: the device at work."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.homes import device_home, device_home_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedpeft_client.connection.fetch_base import FetchProgress

__all__ = ["run"]


@click.command()
@device_home_option
def run(home: Path | None) -> None:
    """Take part in runs until SIGTERM. Exits with 4 and the reason if the device is revoked."""
    import signal

    from fedpeft.logs import log_to_stderr

    log_to_stderr()

    from fedpeft.clock import SystemClock
    from fedpeft.errors import NotEnrolled
    from fedpeft.ids import NodeId
    from fedpeft_client.enrolment.membership import mark_ended
    from fedpeft_client.process.agent import Agent
    from fedpeft_client.process.coordinator_services import CoordinatorServices

    where = device_home(home)
    where.enrolment()
    device = Agent(where, CoordinatorServices(where, SystemClock(), progress=_progress()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: device.stop())

    def connected(node: NodeId) -> None:
        enrolment = where.enrolment()
        click.echo(f"{enrolment.device} is connected to {enrolment.host} and waits for work")

    try:
        device.run(connected)
    except NotEnrolled as ended:
        mark_ended(where, str(ended))
        raise


def _progress() -> "Callable[[FetchProgress], None]":
    """One line a tenth of the base."""
    told = -1

    def show(progress: "FetchProgress") -> None:
        nonlocal told
        tenth = 10 * progress.done_bytes // max(progress.total_bytes, 1)
        if tenth != told:
            told = tenth
            done, total = progress.done_bytes / 2**20, progress.total_bytes / 2**20
            click.echo(f"base {10 * tenth:3} %  {done:.0f} of {total:.0f} MiB")

    return show
