"""`fedpeft coordinator submit | status | stop | resume`: the runs that the coordinator works through."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.coordinator.opened import made_home
from fedpeft.cli.homes import coordinator_home_option

if TYPE_CHECKING:
    from fedpeft_server.jobs.job_queue import JobQueue

__all__ = ["resume", "status", "stop", "submit"]


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@coordinator_home_option
def submit(config: Path, home: Path | None) -> None:
    """Check CONFIG (a run.toml) and put it into the queue; it begins when the coordinator is up and free.

    [data] and [[device]] are not needed: what a device has and trains is its own site.toml's to say. A relative folder
    in base.model is meant from where this command runs.
    """
    from fedpeft.errors import ConfigInvalid
    from fedpeft.files import read_text
    from fedpeft_server.jobs.submission import submission

    where = made_home(home)
    try:
        written = read_text(config)
    except ValueError as error:
        raise ConfigInvalid(f"{config}: {error}.") from error
    text = submission(written, source=config, bases=where.bases)
    job = _queue(home).submit(text, source=str(config))
    click.echo(f"run {job.number} ({job.name}) is queued; see `fedpeft coordinator status`")


@click.command()
@coordinator_home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(home: Path | None, as_json: bool) -> None:
    """Show the coordinator, its devices, and every submitted run."""
    import json
    from dataclasses import asdict

    from fedpeft.terminal import printable

    where = made_home(home)
    live = _live(where.settings().metrics_port)
    jobs = _queue(home).jobs()
    if as_json:
        rows = [{**asdict(job), "state": job.state.value} for job in jobs]
        click.echo(json.dumps({"up": live is not None, "coordinator": live, "runs": rows}))
        return
    if live is None:
        click.echo("the coordinator is down; start it with `fedpeft coordinator up`")
    else:
        devices = live["devices"]
        online = [device["name"] for device in devices if device["online"]] if isinstance(devices, list) else []
        click.echo(f"the coordinator is up; {len(online)} devices online: {', '.join(map(str, online)) or 'none'}")
        if live["now"]:
            click.echo(f"now: {printable(str(live['now']))}")
    for job in jobs:
        where_it_lies = f"  {where.runs / job.run}" if job.run else ""
        click.echo(f"run {job.number:4}  {job.state.value:8}  {job.name}{where_it_lies}")
        if job.reason:
            click.echo(f"          {printable(job.reason, keep_lines=True)}")


@click.command()
@click.argument("run")
@coordinator_home_option
def stop(run: str, home: Path | None) -> None:
    """Stop RUN (its number or run directory's name) after what it is doing; `resume` goes on from its last commit."""
    queue = _queue(home)
    job = queue.stop(queue.job(run))
    click.echo(f"run {job.number}: {'stopped' if job.reason else 'asked to stop'}")


@click.command()
@click.argument("run")
@coordinator_home_option
def resume(run: str, home: Path | None) -> None:
    """Put a stopped or failed RUN into the queue again; it goes on from its last committed round."""
    queue = _queue(home)
    job = queue.resume(queue.job(run))
    click.echo(f"run {job.number} is queued again")


def _queue(path: Path | None) -> "JobQueue":
    from fedpeft_server.jobs.job_queue import JobQueue

    return JobQueue(made_home(path).path / "queue")


def _live(port: int) -> dict[str, object] | None:
    """What the running coordinator says; None when there is none."""
    import json
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    except (OSError, ValueError):
        return None
