"""`fedpeft privacy`: what a budget costs before a run, and what a run has spent."""

from pathlib import Path

import click

from fedpeft.cli.options import json_option, run_argument, say_json
from fedpeft.cli.privacy_audit import audit
from fedpeft.cli.privacy_plan import plan
from fedpeft.cli.privacy_statement import verify
from fedpeft.terminal import counted

__all__ = ["command"]


@click.group(short_help="Plan a privacy budget, and report what a run has spent.")
def command() -> None:
    """Plan a privacy budget, and report what a run has spent (docs/privacy.md)."""


command.add_command(plan)
command.add_command(audit)
command.add_command(verify)


@command.command()
@run_argument
@click.option(
    "--statement",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a signed statement to FILE: .html, .json or any other name for text. The content is the same.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Home (a coordinator's or a device's) whose key signs the statement. Default: the home that contains RUN.",
)
@json_option
def report(run: Path, statement: Path | None, home: Path | None, as_json: bool) -> None:
    """Show the privacy budget that RUN has spent, and what it means."""
    from fedpeft_server.run.privacy_statements import privacy_lines
    from fedpeft_server.run.run_view import read_run
    from fedpeft_server.run.verdict import rounds_done

    view = read_run(run)
    done = rounds_done(view.rounds, view.config().rounds)
    if statement is not None:
        from fedpeft.cli.privacy_statement import issue

        issue(view, statement, home)
        return
    privacy = view.config().privacy
    if as_json:
        spent = [] if privacy.unit == "none" else list(privacy_lines(view))
        facts = {"unit": privacy.unit, "epsilon": privacy.epsilon, "delta": privacy.delta, "spent": spent}
        say_json({"run": str(run), "rounds": done, **facts})
        return
    click.echo(f"{view.manifest.run_id}: {counted(done, 'round')} committed")
    if privacy.unit == "none":
        click.echo("no differential privacy; whoever has the adapter may learn from it")
        return
    click.echo(f"budget: epsilon {privacy.epsilon:g} at delta {privacy.delta:g}; spent:")
    for line in privacy_lines(view):
        click.echo(f"  {line}")
