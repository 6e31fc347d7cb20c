"""`fedpeft coordinator webhook add | ls | rm | test`: which addresses are told what happens."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.coordinator.opened import home_of_this_version, made_home
from fedpeft.cli.homes import coordinator_home_option
from fedpeft.cli.options import json_option, say_json

if TYPE_CHECKING:
    from fedpeft_server.enrolment.audit_log import AuditEvent
    from fedpeft_server.webhooks.hooks import Webhook

__all__ = ["webhook"]


@click.group()
def webhook() -> None:
    """Tell other systems what happens.

    Signed HTTPS messages to addresses that you name.
    On the coordinator's machine alone: where its messages go is no matter of remote administration.
    """


@webhook.command()
@click.argument("name")
@click.argument("url")
@click.option(
    "--event", "events", multiple=True, metavar="EVENT", help="Tell of this event of the audit log. Repeatable."
)
@coordinator_home_option
@json_option
def add(name: str, url: str, events: tuple[str, ...], home: Path | None, as_json: bool) -> None:
    """Add URL under NAME; print its secret.

    Messages are signed with the secret, which is shown once. Without --event it is told of enrolment requests, of runs
    that start and end, and of rounds that fail. A coordinator that is up begins within a second.
    """
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.webhooks.hooks import USUAL, Webhooks

    where = home_of_this_version(home, "webhooks")
    log = AuditLog(where.audit, SystemClock())
    wanted = tuple(_event(text) for text in events) or USUAL
    made = Webhooks(where.webhooks).add(name, url, wanted, last=log.newest())
    # Its host alone: who knows the path of a chat room's address may write there, and other webhooks are told of this.
    log.append(AuditEvent.WEBHOOK_ADDED, actor="operator", subject=name, detail={"host": made.host})
    if as_json:
        say_json({**_view(made), "secret": made.secret_text})
        return
    click.echo(f"webhook {name} is told of: {', '.join(event.value for event in made.events)}", err=True)
    click.echo(f"secret: {made.secret_text}")


@webhook.command(name="ls")
@coordinator_home_option
@json_option
def list_webhooks(home: Path | None, as_json: bool) -> None:
    """List the webhooks and their events."""
    from fedpeft.terminal import printable
    from fedpeft_server.webhooks.hooks import Webhooks

    found = Webhooks(made_home(home).webhooks).all()
    if as_json:
        say_json([_view(hook) for hook in found])
        return
    for hook in found:
        click.echo(f"{hook.name}  {printable(hook.url)}  {', '.join(event.value for event in hook.events)}")


@webhook.command()
@click.argument("name")
@coordinator_home_option
def rm(name: str, home: Path | None) -> None:
    """Remove NAME, which is told nothing more."""
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.webhooks.hooks import Webhooks

    where = home_of_this_version(home, "webhooks")
    Webhooks(where.webhooks).remove(name)
    AuditLog(where.audit, SystemClock()).append(AuditEvent.WEBHOOK_REMOVED, actor="operator", subject=name)
    click.echo(f"webhook {name} is removed")


@webhook.command()
@click.argument("name")
@coordinator_home_option
def test(name: str, home: Path | None) -> None:
    """Send NAME a message of type `test` now."""
    import json

    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft.errors import ResourceMissing
    from fedpeft_server.webhooks.deliveries import Refused, send
    from fedpeft_server.webhooks.hooks import Webhooks

    hook = Webhooks(made_home(home).webhooks).of(name)
    now = SystemClock().utc()
    body = json.dumps({"type": "test", "timestamp": now.isoformat(), "data": {}}).encode()
    try:
        send(hook, f"msg_{os_entropy(16).hex()}", body, timestamp=int(now.timestamp()))
    except Refused as refused:
        raise ResourceMissing(f"Expected webhook {name} to take a message, found: {refused}.") from refused
    click.echo(f"webhook {name} took the message")


def _event(text: str) -> "AuditEvent":
    from fedpeft_server.enrolment.audit_log import AuditEvent

    known = [event.value for event in AuditEvent]
    if text not in known:
        raise click.BadParameter(f"expected one of {', '.join(known)}; found {text!r}", param_hint="--event")
    return AuditEvent(text)


def _view(hook: "Webhook") -> dict[str, object]:
    return {"name": hook.name, "url": hook.url, "events": [event.value for event in hook.events]}
