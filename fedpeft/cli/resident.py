"""`fedpeft client run`: the device at work."""

from pathlib import Path

import click

__all__ = ["commands"]

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="The device's home. Default: $FEDPEFT_HOME or ~/.local/share/fedpeft/device.",
)


@click.command()
@home_option
def run(home: Path | None) -> None:
    """Take part in the federation's runs until SIGTERM; exits 4 with the reason when the device is revoked."""
    import signal

    from fedpeft.ids import NodeId
    from fedpeft.logs import log_to_stderr
    from fedpeft_client.home import DeviceHome, default_device_home
    from fedpeft_client.resident import Resident

    log_to_stderr()
    where = DeviceHome(home or default_device_home())
    device = Resident(where)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: device.stop())

    def connected(node: NodeId) -> None:
        enrolment = where.enrolment()
        click.echo(f"{enrolment.device} is connected to {enrolment.host} and waits for work")

    device.run(connected)


commands = (run,)
"""For the group ``fedpeft.cli.client``."""
