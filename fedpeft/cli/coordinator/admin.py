"""`fedpeft coordinator admin-token | audit | prune | upgrade`: who may administer, who did what, what stays."""

from pathlib import Path

import click

from fedpeft.cli.coordinator.opened import home_of_this_version, made_home
from fedpeft.cli.coordinator.target import Target, asking, target_options
from fedpeft.cli.coordinator.token import duration_s, moment
from fedpeft.cli.homes import coordinator_home_option
from fedpeft.cli.options import json_option, say_json

__all__ = ["admin_token", "audit", "prune", "upgrade"]


@click.group(name="admin-token")
def admin_token() -> None:
    """Create, list and revoke administration tokens. They need `admin_port` in coordinator.json."""


@admin_token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "submitter", "admin"]), default="viewer", show_default=True)
@click.option("--ttl", default="30d", show_default=True, help="Lifetime, e.g. 12h, 30d; at most a year.")
@coordinator_home_option
@json_option
def create(name: str, role: str, ttl: str, home: Path | None, as_json: bool) -> None:
    """Create an access token for NAME, a person or a program. The token is secret and shown once."""
    lasts_s = duration_s(ttl)
    with asking(Target(home, "", None)) as coordinator:
        made = coordinator.ask("access-tokens.create", name=name, role=role, ttl_s=lasts_s)
    if as_json:
        say_json(made)
        return
    click.echo(f"token {made['id']}: {role} {name}, valid for {ttl}:", err=True)
    click.echo(made["token"])


@admin_token.command("ls")
@target_options
@json_option
def list_tokens(target: Target, as_json: bool) -> None:
    """List the access tokens: role, name, expiry. Secrets are not stored and cannot be shown again."""
    with asking(target) as coordinator:
        found = coordinator.ask("access-tokens.list")
    if as_json:
        say_json(found)
        return
    for one in found:
        click.echo(f"{one['id']}  {one['state']:<8} {one['role']:<9} until {moment(one['expires_utc'])}  {one['name']}")


@admin_token.command()
@click.argument("token_id")
@target_options
def revoke(token_id: str, target: Target) -> None:
    """Revoke an access token, from its next request on. Browsers signed in with it are signed out."""
    with asking(target) as coordinator:
        coordinator.ask("access-tokens.revoke", id=token_id)
    click.echo(f"token {token_id} is revoked")


@click.command()
@click.option("--before", type=click.IntRange(0), default=None, help="Show records before this number.")
@click.option(
    "--most", type=click.IntRange(1, 500), default=50, show_default=True, help="How many records to show, newest first."
)
@target_options
@json_option
def audit(before: int | None, most: int, target: Target, as_json: bool) -> None:
    """Show the audit log: who did what, and when."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        found = coordinator.ask("audit", most=most, **({} if before is None else {"before": before}))
    if as_json:
        say_json(found)
        return
    for one in found:
        detail = " ".join(f"{name}={value}" for name, value in one["detail"].items())
        text = f"{one['sequence']:6}  {one['utc'][:19]}  {one['event']:<18} {one['actor']}  {one['subject']}  {detail}"
        click.echo(printable(text.rstrip()))


@click.command()
@coordinator_home_option
def upgrade(home: Path | None) -> None:
    """Upgrade a home of an earlier version. `up` does this too. Take a backup first.

    A home of a newer version is refused; the message names the version that it needs.
    """
    from fedpeft.clock import SystemClock
    from fedpeft.directory_lock import DirectoryLock
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.enrolment.registry import open_registry

    where = made_home(home)
    lock = DirectoryLock(where.path)
    try:
        before, now = where.upgrade()
        if before < now:
            open_registry(where.registry, where.audit).close()  # an audit log without one is a home that lost it
            detail: dict[str, str | int | float] = {"from": before, "to": now}
            AuditLog(where.audit, SystemClock()).append(
                AuditEvent.UPGRADED, actor="operator", subject=str(where.path), detail=detail
            )
    finally:
        lock.release()
    click.echo(f"{where.path}: schema {now}" + (f", was {before}" if before < now else ", as it was"))


@click.command()
@click.option("--older-than", required=True, metavar="DURATION", help="Only runs that ended so long ago, e.g. 90d.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@coordinator_home_option
@json_option
def prune(older_than: str, dry_run: bool, home: Path | None, as_json: bool) -> None:
    """Remove the directories of runs that ended long ago.

    With them go their states, adapters, measurements and privacy statements: copy what you need longer. The audit log
    and the list of submitted runs stay. The coordinator may be up; call this from cron for a policy.
    """
    from fedpeft.clock import SystemClock
    from fedpeft.terminal import printable
    from fedpeft_server.enrolment.audit_log import AuditLog
    from fedpeft_server.jobs.job_queue import JobQueue
    from fedpeft_server.jobs.retention import old_runs, remove_old_runs

    older_s = duration_s(older_than, "--older-than")
    where, clock = made_home(home) if dry_run else home_of_this_version(home, "pruning"), SystemClock()
    queue = JobQueue(where.path / "queue")
    if dry_run:
        found = tuple(old_runs(where, queue, older_s=older_s, now=clock.utc().timestamp()))
    else:
        found = remove_old_runs(where, queue, AuditLog(where.audit, clock), clock, older_s=older_s, by="operator")
    if as_json:
        shown = [{"number": one.job.number, "run": one.job.run, "bytes": one.size_bytes} for one in found]
        say_json({"removed": not dry_run, "runs": shown})
        return
    for one in found:
        size = f"{one.size_bytes / 2**20:.1f} MiB"
        click.echo(f"run {one.job.number:4}  {printable(one.job.run)}  ended {moment(one.ended)}  {size}")
    total = sum(one.size_bytes for one in found) / 2**20
    click.echo(f"{len(found)} runs, {total:.1f} MiB{' would go' if dry_run else ' removed'}")
