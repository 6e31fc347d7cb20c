"""`fedpeft coordinator token create | ls | revoke`: the join tokens that devices are admitted by."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.coordinator.opened import opened
from fedpeft.cli.homes import coordinator_home_option

if TYPE_CHECKING:
    from fedpeft.deployment.token import JoinToken
    from fedpeft_server.enrolment.registry import Registry
    from fedpeft_server.home import CoordinatorHome

__all__ = ["issue", "token"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group()
def token() -> None:
    """Make, list and revoke join tokens, which devices are admitted by."""


@token.command()
@coordinator_home_option
@click.option("--ttl", default="24h", show_default=True, help="How long it is good, e.g. 30m, 24h, 7d.")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many devices it admits.")
@click.option("--organisation", default="", help="Whose devices these are; cohorts are counted in organisations.")
@click.option("--auto-approve", is_flag=True, help="Admit without approval: whoever has the token is in.")
def create(home: Path | None, ttl: str, uses: int, organisation: str, auto_approve: bool) -> None:
    """Make a join token and print the command that uses it. The token is a secret: it is shown once."""
    with opened(home) as (where, registry, _):
        made = issue(
            where, registry, ttl_s=_seconds(ttl), uses=uses, auto_approve=auto_approve, organisation=organisation
        )
    click.echo(f"token {made.token_id}, for {uses} device(s), good for {ttl}:", err=True)
    click.echo(f"fedpeft client join {made.to_text()}")


def issue(
    home: "CoordinatorHome",
    registry: "Registry",
    *,
    ttl_s: float,
    uses: int,
    auto_approve: bool = False,
    organisation: str = "",
) -> "JoinToken":
    """A new token, audited."""
    from fedpeft.clock import SystemClock
    from fedpeft.entropy import os_entropy
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.enrolment.certificate_authority import Authority
    from fedpeft_server.enrolment.join_tokens import Tokens

    settings, clock = home.settings(), SystemClock()
    made = Tokens(registry, clock).create(
        host=settings.hosts[0],
        enrol_port=settings.enrol_port,
        ca_fingerprint=Authority.of_home(home, clock).fingerprint,
        ttl_s=ttl_s,
        uses=uses,
        auto_approve=auto_approve,
        organisation=organisation,
        entropy=os_entropy,
    )
    detail = {"uses": uses, "ttl_s": ttl_s, "approval": "automatic" if auto_approve else "by code"}
    AuditLog(home.audit, clock).append(AuditEvent.TOKEN_CREATED, actor="operator", subject=made.token_id, detail=detail)
    return made


@token.command(name="ls")
@coordinator_home_option
def list_tokens(home: Path | None) -> None:
    """List the tokens: uses, expiry, approval. Secrets are not kept, so they cannot be shown again."""
    from datetime import UTC, datetime

    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.join_tokens import Tokens

    with opened(home) as (_, registry, _):
        for record in Tokens(registry, SystemClock()).ls():
            expires = datetime.fromtimestamp(record.expires_utc, UTC).isoformat(timespec="minutes")
            over = record.revoked or SystemClock().utc().timestamp() > record.expires_utc
            state = "revoked" if record.revoked else "expired" if over else "good"
            approval = "automatic" if record.auto_approve else "by code"
            click.echo(
                f"{record.token_id}  {state:<8} {record.used}/{record.uses} used  until {expires}  "
                f"{approval:<9}  {record.organisation}"
            )


@token.command(name="revoke")
@click.argument("token_id")
@coordinator_home_option
def revoke_token(token_id: str, home: Path | None) -> None:
    """Admit nobody else by TOKEN_ID; devices that it admitted stay."""
    from fedpeft.clock import SystemClock
    from fedpeft_server.enrolment.audit_log import AuditEvent, AuditLog
    from fedpeft_server.enrolment.join_tokens import Tokens

    with opened(home) as (where, registry, _):
        Tokens(registry, SystemClock()).revoke(token_id)
        AuditLog(where.audit, SystemClock()).append(AuditEvent.TOKEN_REVOKED, actor="operator", subject=token_id)
    click.echo(f"token {token_id} admits nobody else")


def _seconds(text: str) -> float:
    if not (found := re.fullmatch(r"(\d{1,6})([smhd])", text)):
        raise click.BadParameter(f"expected a duration such as 30m, 24h or 7d, found {text!r}", param_hint="--ttl")
    return float(int(found[1]) * _UNITS_S[found[2]])
