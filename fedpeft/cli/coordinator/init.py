"""`fedpeft coordinator init`: a coordinator's home."""

from pathlib import Path

import click

from fedpeft.cli.homes import coordinator_home, coordinator_home_option
from fedpeft.terminal import quoted

__all__ = ["init"]


@click.command()
@coordinator_home_option
@click.option(
    "--host", "hosts", multiple=True, required=True, help="Host name or address that devices connect to. Repeatable."
)
@click.option("--bind", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104  see Settings
@click.option("--fleet-port", type=click.IntRange(1, 65535), default=8443, show_default=True)
@click.option("--service-port", type=click.IntRange(1, 65535), default=8444, show_default=True)
@click.option("--enrol-port", type=click.IntRange(1, 65535), default=8445, show_default=True)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8447, show_default=True, help="Loopback.")
@click.option(
    "--admin-port", type=click.IntRange(0, 65535), default=0, help="Port for remote administration over HTTPS; 0: off."
)
@click.option(
    "--admin-bind", default="127.0.0.1", show_default=True, help="Address to listen on for remote administration."
)
def init(
    home: Path | None,
    hosts: tuple[str, ...],
    bind: str,
    fleet_port: int,
    service_port: int,
    enrol_port: int,
    metrics_port: int,
    admin_port: int,
    admin_bind: str,
) -> None:
    """Create a coordinator's home. It holds the certificate authority, keys and settings."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_server.enrolment.certificate_authority import initialise
    from fedpeft_server.home import Settings

    where = coordinator_home(home)
    settings = Settings(
        hosts=hosts,
        bind=bind,
        fleet_port=fleet_port,
        service_port=service_port,
        enrol_port=enrol_port,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_bind=admin_bind,
    )
    authority = initialise(where, settings, clock=SystemClock(), entropy=os_entropy)
    click.echo(f"coordinator created in {where.path}")
    click.echo(f"  authority sha256  {authority.fingerprint.hex()}")
    click.echo(f"  devices reach     {hosts[0]} on ports {fleet_port}, {service_port}, {enrol_port}: open these three")
    place = quoted("--home", where.path)
    click.echo(f"next: fedpeft base build MODEL --quantize nf4 {place}")
    click.echo(f"      fedpeft coordinator up {place}")
    click.echo(f"      fedpeft coordinator token create {place}")
