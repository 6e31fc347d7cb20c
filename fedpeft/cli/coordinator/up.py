"""`fedpeft coordinator up`: the coordinator's process."""

from pathlib import Path

import click

from fedpeft.cli.coordinator.opened import made_home
from fedpeft.cli.homes import coordinator_home_option
from fedpeft.terminal import quoted

__all__ = ["up"]

FIRST_TOKEN_S, FIRST_TOKEN_USES = 24 * 3600.0, 10
"""Of the join token that `up` shows while nobody is enrolled."""


@click.command()
@coordinator_home_option
def up(home: Path | None) -> None:
    """Run the coordinator until SIGTERM. It serves the devices and works through the queue of runs."""
    import signal

    from fedpeft.logs import log_to_stderr

    log_to_stderr()

    from fedpeft_server.coordinator import DRAIN_S, Coordinator
    from fedpeft_server.enrolment.issue import issue

    where = made_home(home)
    coordinator = Coordinator(where)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: coordinator.stop())
    try:
        coordinator.start()
        settings = where.settings()
        host = settings.hosts[0]
        click.echo(f"ready: fleet https://{host}:{settings.fleet_port}  base grpc {host}:{settings.service_port}")
        click.echo(f"  health and metrics  http://127.0.0.1:{settings.metrics_port}/metrics")
        if settings.admin_port:
            click.echo(f"  administration      https://{settings.admin_bind}:{settings.admin_port}/")
        if coordinator.registry.devices():
            click.echo(f"  let a device join:  fedpeft coordinator token create {quoted('--home', where.path)}")
        else:
            # Only to begin with, and nobody is in without approval: a service's output ends in a log.
            token = issue(where, coordinator.registry, ttl_s=FIRST_TOKEN_S, uses=FIRST_TOKEN_USES).to_text()
            click.echo(f"  join a device with (valid today, for {FIRST_TOKEN_USES} devices; you approve each):")
            click.echo(f"    fedpeft client join {token} --data FILE")
        click.echo(f"  start a run with:   fedpeft coordinator submit run.toml {quoted('--home', where.path)}")
        coordinator.work()
        click.echo(f"stopped; a running round had {DRAIN_S:.0f} s to finish, and every committed round is kept")
    finally:
        coordinator.close()
