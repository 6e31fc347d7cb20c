"""`fedpeft coordinator token create | ls | revoke`: the join tokens that devices are admitted by."""

import re

import click

from fedpeft.cli.coordinator.target import Target, asking, target_options
from fedpeft.cli.options import json_option, say_json

__all__ = ["duration_s", "moment", "token"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.group()
def token() -> None:
    """Create, list and revoke join tokens, which let devices enrol."""


@token.command()
@target_options
@click.option("--ttl", default="24h", show_default=True, help="Lifetime, e.g. 30m, 24h, 7d.")
@click.option(
    "--uses", type=click.IntRange(1), default=1, show_default=True, help="How many devices may enrol with it."
)
@click.option(
    "--organisation", default="", help="Organisation that the devices belong to; min_cohort counts organisations."
)
@click.option("--auto-approve", is_flag=True, help="Enrol without approval: whoever has the token is in.")
@json_option
def create(target: Target, ttl: str, uses: int, organisation: str, auto_approve: bool, as_json: bool) -> None:
    """Create a join token and print the command for the device. The token is secret and shown once."""
    lasts_s = duration_s(ttl)
    with asking(target) as coordinator:
        made = coordinator.ask(
            "join-tokens.create", ttl_s=lasts_s, uses=uses, organisation=organisation, auto_approve=auto_approve
        )
    if as_json:
        say_json(made)
        return
    click.echo(f"token {made['id']}, for {uses} device(s), valid for {ttl}:", err=True)
    click.echo(f"fedpeft client join {made['token']}")


@token.command(name="ls")
@target_options
@json_option
def list_tokens(target: Target, as_json: bool) -> None:
    """List the join tokens: uses, expiry, approval. Secrets are not stored and cannot be shown again."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        found = coordinator.ask("join-tokens.list")
    if as_json:
        say_json(found)
        return
    for one in found:
        approval = "automatic" if one["auto_approve"] else "by code"
        click.echo(
            f"{one['id']}  {one['state']:<8} {one['used']}/{one['uses']} used  until {moment(one['expires_utc'])}  "
            f"{approval:<9}  {printable(one['organisation'])}"
        )


@token.command(name="revoke")
@click.argument("token_id")
@target_options
def revoke_token(token_id: str, target: Target) -> None:
    """Revoke a join token. Devices that enrolled with it stay enrolled."""
    with asking(target) as coordinator:
        coordinator.ask("join-tokens.revoke", id=token_id)
    click.echo(f"token {token_id} is revoked; it admits no further device")


def duration_s(text: str, option: str = "--ttl") -> int:
    """Seconds of a text such as 30m or 7d."""
    if not (found := re.fullmatch(r"(\d{1,6})([smhd])", text)):
        raise click.BadParameter(f"expected a duration such as 30m, 24h or 7d, found {text!r}", param_hint=option)
    return int(found[1]) * _UNITS_S[found[2]]


def moment(utc: float) -> str:
    """A Unix time for people."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(utc, UTC).isoformat(timespec="minutes")
