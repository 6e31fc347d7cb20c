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
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="One port for all that devices reach, as 443; instead of the next three.",
)
@click.option("--fleet-port", type=click.IntRange(1, 65535), help="Rounds. [default: 8443]")
@click.option("--service-port", type=click.IntRange(1, 65535), help="Bases and wake-ups. [default: 8444]")
@click.option("--enrol-port", type=click.IntRange(1, 65535), help="Enrolment. [default: 8445]")
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
    port: int | None,
    fleet_port: int | None,
    service_port: int | None,
    enrol_port: int | None,
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
    if port is not None and any((fleet_port, service_port, enrol_port)):
        raise click.UsageError(
            "Expected --port, or --fleet-port, --service-port and --enrol-port, found both; give one port or three."
        )
    settings = Settings(
        hosts=hosts,
        bind=bind,
        fleet_port=port or fleet_port or 8443,
        service_port=port or service_port or 8444,
        enrol_port=port or enrol_port or 8445,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_bind=admin_bind,
    )
    authority = initialise(where, settings, clock=SystemClock(), entropy=os_entropy)
    click.echo(f"coordinator created in {where.path}")
    click.echo(f"  authority sha256  {authority.fingerprint.hex()}")
    ports = [str(port) for port in settings.public_ports().values()]
    which = f"port {ports[0]}: open it" if len(ports) == 1 else f"ports {', '.join(ports)}: open these three"
    click.echo(f"  devices reach     {hosts[0]} on {which}")
    place = quoted("--home", where.path)
    click.echo(f"next: fedpeft base build MODEL --quantize nf4 {place}")
    click.echo(f"      fedpeft coordinator up {place}")
    click.echo(f"      fedpeft coordinator token create {place}")
