"""`fedpeft coordinator submit | status | stop | resume | runs`: the runs that the coordinator works on."""

from pathlib import Path
from typing import Any

import click

from fedpeft.cli.coordinator.target import Target, asking, target_options
from fedpeft.cli.coordinator.token import duration_s, moment
from fedpeft.cli.options import OutFolder, json_option, say_json

__all__ = ["resume", "runs", "status", "stop", "submit"]

without_option = click.option("--without", multiple=True, metavar="NAME", help="Never ask this device. Repeatable.")


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="The highest is served first. [default: 0]")
@click.option("--group", default="", help="Ask only the devices in this group; see `clients group`.")
@without_option
@click.option("--at", default="", metavar="TIME", help="Begin then, not before: 2026-12-08T02:00, or with +01:00.")
@click.option("--every", default="", metavar="DURATION", help="Repeat it so often, e.g. 12h or 7d.")
@target_options
def submit(
    config: Path, priority: int, group: str, without: tuple[str, ...], at: str, every: str, target: Target
) -> None:
    """Validate a run.toml and queue it. It starts when the coordinator is up and has a place for it.

    A coordinator works on two runs at once (runs_at_once in its coordinator.json). Runs that ask the same devices take
    turns; the one with the higher priority goes first.

    A run with --every queues the next one, with another seed, as it begins. A start that was missed happens once, when
    the coordinator is up again. `coordinator stop` on the run that waits ends the repetition.

    [data] and [[device]] are not needed: what a device has and trains is its own site.toml's to say. A relative folder
    in base.model is meant from where this command runs; with --coordinator the base is named by its digest.
    """
    from fedpeft.cli.coordinator.target import LocalCoordinator
    from fedpeft.errors import ConfigInvalid
    from fedpeft.files import read_text
    from fedpeft_server.admin.runs import submit_here

    when = {"start_at": _moment(at) if at else 0, "every_s": duration_s(every, "--every") if every else 0}
    try:
        written = read_text(config)
    except ValueError as error:
        raise ConfigInvalid(f"{config}: {error}.") from error
    with asking(target) as coordinator:
        if isinstance(coordinator, LocalCoordinator):
            job: Any = submit_here(
                coordinator.site,
                written,
                source=config,
                by="operator",
                priority=priority,
                group=group,
                without=without,
                start_at=when["start_at"],
                every_s=when["every_s"],
            )
        else:
            told: dict[str, str | int] = {"group": group, "without": ",".join(without), **when}
            more = {name: value for name, value in told.items() if value}
            job = coordinator.ask("runs.submit", config=written, priority=priority, **more)
    click.echo(f"run {job['number']} ({job['name']}) is queued{_schedule(job)}; see `fedpeft coordinator status`")


def _moment(text: str) -> int:
    """Unix seconds of a time; without a zone it is this machine's."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(
            f"expected a time such as 2026-12-08T02:00 or 2026-12-08T02:00+01:00, found {text!r}", param_hint="--at"
        ) from error


def _schedule(job: Any) -> str:
    at = f", begins {moment(job['start_at'])}" if job.get("start_at") else ""
    return f"{at}, repeats every {job['every_s']} s" if job.get("every_s") else at


@click.command()
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(target: Target, as_json: bool) -> None:
    """Show the coordinator, its devices and every submitted run."""
    import json

    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        found = coordinator.ask("status")
    if as_json:
        click.echo(json.dumps(found))
        return
    live = found["coordinator"]
    if live is None:
        click.echo("the coordinator is down; start it with `fedpeft coordinator up`")
    else:
        online = [printable(str(device["name"])) for device in live["devices"] if device["online"]]
        click.echo(f"the coordinator is up; {len(online)} devices online: {', '.join(online) or 'none'}")
        if live["now"]:
            click.echo(f"now: {printable(str(live['now']))}")
    for job in found["runs"]:
        _say_run(job)


@click.command()
@click.argument("run")
@target_options
def stop(run: str, target: Target) -> None:
    """Stop RUN; `resume` continues it. RUN is its number, or the name of its run directory."""
    with asking(target) as coordinator:
        job = coordinator.ask("runs.stop", run=run)
    click.echo(f"run {job['number']}: {'stopped' if job['reason'] else 'asked to stop'}")


@click.command()
@click.argument("run")
@target_options
def resume(run: str, target: Target) -> None:
    """Queue a stopped or failed RUN again. It continues after its last committed round."""
    with asking(target) as coordinator:
        job = coordinator.ask("runs.resume", run=run)
    click.echo(f"run {job['number']} is queued again")


@click.group()
def runs() -> None:
    """List and show submitted runs, and download their adapters."""


@runs.command(name="ls")
@target_options
@json_option
def list_runs(target: Target, as_json: bool) -> None:
    """List the submitted runs: number, state, name, run directory."""
    with asking(target) as coordinator:
        found = coordinator.ask("runs.list")
    if as_json:
        say_json(found)
        return
    for job in found:
        _say_run(job)


@runs.command()
@click.argument("run")
@without_option
@target_options
def clone(run: str, without: tuple[str, ...], target: Target) -> None:
    """Queue RUN again, as a new run. Its run.toml, priority and group are the same.

    With --without a device is forgotten: the new run begins anew, with another seed, and never asks it. The coordinator
    cannot take a device out of RUN itself, because it knows who took part, and not what one device gave.
    """
    with asking(target) as coordinator:
        more = {"without": ",".join(without)} if without else {}
        job = coordinator.ask("runs.clone", run=run, **more)
    click.echo(f"run {job['number']} ({job['name']}) is queued; see `fedpeft coordinator status`")


@runs.command()
@click.argument("run")
@click.argument("priority", type=click.IntRange(-100, 100))
@target_options
def priority(run: str, priority: int, target: Target) -> None:
    """Give RUN another priority, -100 to 100. A running one has it from its next round on."""
    with asking(target) as coordinator:
        job = coordinator.ask("runs.prefer", run=run, priority=priority)
    click.echo(f"run {job['number']} has priority {job['priority']}")


@runs.command()
@click.argument("run")
@target_options
@json_option
def show(run: str, target: Target, as_json: bool) -> None:
    """Show RUN round by round. Loss, accuracy, devices, bytes, and the privacy statement."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        found = coordinator.ask("runs.show", run=run)
    if as_json:
        say_json(found)
        return
    _say_run(found)
    for row in found["rounds"]:
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        mib = (row["bytes_up"] + row["bytes_down"]) / 2**20
        burnt = f"  burnt: {printable(str(row['burnt']))}" if row["burnt"] else ""
        click.echo(
            f"round {row['round']:4}  loss {loss:>8}  accuracy {accuracy:>6}  "
            f"devices {row['survived']}/{row['invited']}  {mib:8.2f} MiB  {row['seconds']:7.1f} s{burnt}"
        )
    for line in found["privacy"]["lines"]:
        click.echo(f"  {printable(str(line))}")


@runs.command()
@click.argument("run")
@click.option(
    "--out", type=OutFolder(), required=True, help="Folder to write to. Files of the same name are overwritten."
)
@target_options
def download(run: str, out: Path, target: Target) -> None:
    """Download the adapter of RUN. The final one, else the best so far, else the latest."""
    import shutil

    from fedpeft.errors import IntegrityFailed
    from fedpeft.terminal import printable

    out.mkdir(parents=True, exist_ok=True)
    with asking(target) as coordinator:
        listed = coordinator.ask("runs.adapter", run=run)
        for entry in listed["files"]:
            name = str(entry["name"])
            if Path(name).name != name or name.startswith("."):
                raise IntegrityFailed(f"Expected a file's name, found {printable(name[:80])!r}; nothing was written.")
            part = out / f".{name}.part"
            with coordinator.file("runs.file", run=run, file=name) as source, part.open("wb") as into:
                shutil.copyfileobj(source, into)
            if part.stat().st_size != entry["bytes"]:
                part.unlink()
                raise IntegrityFailed(f"Expected {entry['bytes']} bytes of {printable(name)}, found others; try again.")
            part.replace(out / name)
    click.echo(f"{out}: {listed['slot']}, {len(listed['files'])} files")


def _say_run(job: Any) -> None:
    from fedpeft.terminal import printable

    lies = f"  {printable(str(job['run']))}" if job["run"] else ""
    where = f"  group {printable(str(job['group']))}" if job["group"] else ""
    absent = f"  without {printable(', '.join(map(str, job['without'])))}" if job.get("without") else ""
    first = f"  priority {job['priority']}" if job["priority"] else ""
    then = _schedule(job) if job["state"] == "queued" else ""
    click.echo(
        f"run {job['number']:4}  {job['state']:8}  {printable(str(job['name']))}{lies}{where}{absent}{first}{then}"
    )
    if job["reason"]:
        click.echo(f"          {printable(str(job['reason']), keep_lines=True)}")
