"""`fedpeft runs`: what lies in the run directories. Reads only, but for `report`, which writes report.html."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.compare import compare
from fedpeft.cli.options import json_option, run_argument, say_json
from fedpeft.terminal import counted, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedpeft_server.run.records import RoundMetrics

__all__ = ["command"]


@click.group(short_help="List, show, compare and verify runs, and render their reports.")
def command() -> None:
    """List, show, compare and verify runs, and render their reports."""


command.add_command(compare)


@command.command("ls")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs), oldest first."""
    from fedpeft.errors import FedpeftError
    from fedpeft_server.run.run_view import list_runs, read_run
    from fedpeft_server.run.verdict import rounds_done

    paths = list_runs(folder)
    if as_json:
        say_json([_run_json(path) for path in paths])
        return
    width = max((len(path.name) for path in paths), default=0)
    for path in paths:
        try:
            view = read_run(path)
        except (FedpeftError, OSError):  # one that cannot be read hides no other
            click.echo(f"{path.name:<{width}}  damaged      see `{quoted('fedpeft', 'runs', 'verify', path)}`")
            continue
        accuracy = _last_measured(view.rounds)
        done = rounds_done(view.rounds, view.config().rounds)
        rounds = f"{done:>4} {'round ' if done == 1 else 'rounds'}"
        click.echo(f"{path.name:<{width}}  {view.state:<11}  {rounds}  {accuracy}")
    if not paths:
        click.echo(f"no runs in {folder}; `fedpeft simulate run.toml` makes one")


def _last_measured(rows: "Sequence[RoundMetrics]") -> str:
    """The accuracy of the last row that has one, or its other metrics, in words."""
    from fedpeft.tasks.measure import told

    last = next((row for row in reversed(rows) if row.loss is not None), None)
    if last is None:
        return "not evaluated"
    return told(last.metrics) if last.accuracy is None else f"accuracy {last.accuracy:.1%}"


def _run_json(path: Path) -> dict[str, object]:
    """What ``ls`` says of one run."""
    from fedpeft.errors import FedpeftError
    from fedpeft_server.run.run_view import read_run
    from fedpeft_server.run.verdict import rounds_done

    try:
        view = read_run(path)
    except (FedpeftError, OSError) as error:
        return {"run": path.name, "path": str(path), "state": "damaged", "error": str(error)}
    measured = [row for row in view.rounds if row.loss is not None]
    return {
        "run": path.name,
        "path": str(path),
        "state": view.state,
        "rounds": rounds_done(view.rounds, view.config().rounds),
        "accuracy": measured[-1].accuracy if measured else None,
        "metrics": measured[-1].metrics if measured else {},
    }


@command.command()
@run_argument
@json_option
def show(run: Path, as_json: bool) -> None:
    """Show RUN, one line per round, and which devices fail."""
    from dataclasses import asdict

    from fedpeft.tasks.measure import told
    from fedpeft_server.run.failing_devices import failing_devices
    from fedpeft_server.run.run_view import read_run
    from fedpeft_server.run.verdict import rounds_done, verdict

    view = read_run(run)
    if as_json:
        facts = _run_json(run) | {"writer": view.writer, "base": view.manifest.base_digest}
        rows = [asdict(row) for row in view.rounds]
        summary = None if view.summary is None else asdict(view.summary)
        say_json({**facts, "config": view.manifest.config_digest, "rows": rows, "summary": summary})
        return
    count = view.config().rounds.count
    done = rounds_done(view.rounds, view.config().rounds)
    writer = f" (process {view.writer})" if view.writer else ""
    click.echo(f"{view.manifest.run_id}: {view.state}{writer}, {counted(done, 'round')} committed")
    click.echo(f"base {view.manifest.base_digest}, config {view.manifest.config_digest}")
    for row in view.rounds:
        name = f"round {row.round:>4}" if row.round <= count else f"{'final':<10}"  # which trains nothing
        if row.burnt:
            click.echo(f"{name}  burnt: {row.burnt}")
            continue
        loss = "     -" if row.loss is None else f"{row.loss:6.3f}"
        accuracy = "    -" if row.accuracy is None else f"{row.accuracy:5.1%}"
        further = f"{told(row.metrics)}  " if row.metrics else ""
        click.echo(
            f"{name}  loss {loss}  accuracy {accuracy}  {further}"
            f"devices {row.devices_survived}/{row.devices_invited}  "
            f"up {row.bytes_up / 1e6:.2f} MB  down {row.bytes_down / 1e6:.2f} MB  {row.seconds:.1f} s"
        )
    for one in failing_devices(view.rounds, view.events):
        times = "once" if one.times == 1 else f"{one.times} times"
        click.echo(f"fails       {one.client}: {one.reason}, {times} since {one.since} (round {one.round_id})")
    for fact in verdict(view.rounds, view.config()):
        click.echo(fact)
    resumes = view.state == "interrupted" and "simulate" in view.manifest.command
    following = ("simulate", "--resume", str(run)) if resumes else ("runs", "report", str(run))
    click.echo(f"next: {quoted('fedpeft', *following)}")


@command.command()
@run_argument
def report(run: Path) -> None:
    """Write RUN/report.html again and print its path."""
    from fedpeft_server.report.page import write_report

    click.echo(write_report(run))


@command.command()
@run_argument
@json_option
def verify(run: Path, as_json: bool) -> None:
    """Check every digest that RUN recorded. Exits with 6 if one does not match."""
    from fedpeft.errors import IntegrityFailed
    from fedpeft_server.run.run_view import verify_run
    from fedpeft_server.run.unlearning import CERTIFICATE, read_certificate

    problems = verify_run(run)
    if not problems and (run / CERTIFICATE).exists():
        read_certificate(run)
    if as_json:
        say_json({"run": str(run), "sound": not problems, "problems": [str(problem) for problem in problems]})
    if problems:
        raise IntegrityFailed(f"{run}: expected the files that the run recorded, found others.", problems=problems)
    if not as_json:
        click.echo(f"{run}: every digest holds")
