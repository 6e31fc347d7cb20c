"""`fedpeft client runs`: the runs that this device was asked to join, its owner's answers, and what left."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.homes import device_home, device_home_option
from fedpeft.cli.options import json_option, say_json
from fedpeft.terminal import counted, printable

if TYPE_CHECKING:
    from fedpeft_client.home import DeviceHome
    from fedpeft_client.run_question import Question
    from fedpeft_client.site_runs import RunRecord, SiteRuns

__all__ = ["runs"]

DIGITS = 16
"""Of a plan's digest that are shown, and 8 at least that `--plan` takes."""


@click.group(short_help="Approve or refuse runs; see what left this device.")
def runs() -> None:
    """List the runs that invited this device, approve or refuse them, and see what left the device."""


@runs.command()
@device_home_option
@json_option
def pending(home: Path | None, as_json: bool) -> None:
    """List the runs that wait for your approval. Shows plan, data used, and what would leave this device.

    Runs need approval if site.toml has policy.approve = "ask". Until then they continue without this device.
    """
    waiting = [one.question for one in _kept(home).records() if one.waits and one.question]
    if as_json:
        from dataclasses import asdict

        say_json([asdict(question) for question in waiting])
        return
    for question in waiting:
        _show(question)
    if not waiting:
        click.echo("no run waits for an answer")


@runs.command()
@click.argument("run")
@device_home_option
@click.option(
    "--plan",
    metavar="DIGEST",
    default="",
    help="Approve without a prompt, if the plan still has this digest (from `pending`).",
)
def approve(run: str, home: Path | None, plan: str) -> None:
    """Approve RUN under the plan shown. RUN is a name from `pending`, or its beginning.

    If the plan changes, the run needs a new approval.
    """
    kept = _kept(home)
    record = _one(kept, run)
    if record.question is None:
        raise click.UsageError(
            f"Expected a run that has invited this device, found none named {run}; see `fedpeft client runs ls`."
        )
    if 0 < len(plan) < 8:
        raise click.BadParameter(
            "Expected --plan with at least 8 digits of the plan's digest; `fedpeft client runs pending` shows it.",
            param_hint="--plan",
        )
    if not plan:
        _show(record.question)
        click.confirm("Take part, under this plan?", abort=True)
        plan = record.question.plan_sha256  # what was shown: another one by now is refused
    decision = kept.decide(record.run_id, "approved", plan=plan, by=_account())
    click.echo(f"approved: {_shown(record.run_id)}, plan {decision.plan_sha256[:DIGITS]}; it joins at the next round")


@runs.command()
@click.argument("run")
@device_home_option
@click.option("--yes", is_flag=True, help="Do not prompt.")
def refuse(run: str, home: Path | None, yes: bool) -> None:
    """Refuse RUN for good. Masked input that the device has already sent is not taken back."""
    kept = _kept(home)
    record = _one(kept, run)
    if not yes:
        click.confirm(f"Refuse {_shown(record.run_id)} for good?", abort=True)
    kept.decide(record.run_id, "refused", plan="", by=_account())
    click.echo(f"refused: {_shown(record.run_id)}")


@runs.command("ls")
@device_home_option
@json_option
def list_(home: Path | None, as_json: bool) -> None:
    """List every run that invited this device. Shows your answer and what left the device, oldest first."""
    records = _kept(home).records()
    if as_json:
        from dataclasses import asdict

        say_json([{"run": one.run_id, "waits": one.waits, **asdict(one)} for one in records])
        return
    for record in records:
        click.echo(f"{_shown(record.run_id)}  {_answer(record)}")
        click.echo(f"    {_gone(record)}")
        if (text := _fork(device_home(home), record.run_id)) is not None:
            click.echo(f"    {text}")
    if not records:
        click.echo("no run has asked this device")


def _kept(home: Path | None) -> "SiteRuns":
    from fedpeft.clock import SystemClock
    from fedpeft_client.site_runs import SiteRuns

    where = device_home(home)
    where.last_enrolment()
    return SiteRuns(where.runs, SystemClock())


def _one(kept: "SiteRuns", run: str) -> "RunRecord":
    from fedpeft.errors import ResourceMissing

    records = kept.records()
    found = [one for one in records if one.run_id == run] or [one for one in records if one.run_id.startswith(run)]
    if len(found) != 1:
        names = ", ".join(_shown(one.run_id) for one in (found or records)[-10:]) or "none"
        raise ResourceMissing(f"Expected one run by the name {run}, found {len(found)}; there are: {names}.")
    return found[0]


def _show(question: "Question") -> None:

    million = question.parameters / 1e6
    lines = {
        "asked": question.at,
        "plan": question.plan_sha256[:DIGITS],
        "base": printable(question.base),
        "task": f"{question.task}, by {', '.join(question.methods) or 'the head alone'}",
        "work": f"{counted(question.rounds, 'round')} of {counted(question.local_steps, 'step')}",
        "data used": f"{question.source} (stays here)",
        "would leave": (
            f"a masked vector of up to {million:.3g} million numbers per round, sums of loss and accuracy in the same "
            "secure sum, and this device's name and size class"
        ),
        "secure sum": f"{question.secure_sum}; asked {question.devices} devices of {question.organisations}",
        "privacy": question.privacy,
    }
    click.echo(_shown(question.run_id))
    for name, text in lines.items():
        click.echo(f"    {name:12} {printable(text)}")


def _answer(record: "RunRecord") -> str:
    said = record.decision
    if record.waits and said is not None:
        return f"waits: its plan changed after your yes of {said.at}"
    if said is None:
        return "no answer" if record.left is None else "no answer was needed"
    return f"{said.answer} {said.at} by {said.by}"


def _gone(record: "RunRecord") -> str:
    left = record.left
    if left is None:
        return "nothing has left"
    loss = "" if left.epsilon is None else f"; an example lost epsilon {left.epsilon:.4g} at delta {left.delta:g}"
    return (
        f"{counted(left.rounds, 'round')}, {left.bytes_up / 1e6:.2f} MB up, {left.bytes_down / 1e6:.2f} MB down, "
        f"{left.first} to {left.last}{loss}"
    )


def _fork(where: "DeviceHome", run_id: str) -> str | None:
    """Of a run whose coordinator has told this device two histories: both are kept, signed."""
    from fedpeft.round.run_memory import fork_seen
    from fedpeft_client.training.device_stores import FileStore

    if not where.state.is_dir() or (fork := fork_seen(FileStore(where.state), run_id)) is None:
        return None
    return (
        f"refused in round {fork.round_id}: the coordinator signed a history of this run that differs from the one it "
        f"had signed before. Both are kept in {where.state}; show them to the other sites"
    )


def _shown(run_id: str) -> str:

    return printable(run_id)


def _account() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        import os

        return f"uid {os.getuid()}"
