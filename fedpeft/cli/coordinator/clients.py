"""`fedpeft coordinator clients`: who may take part: list, approve, deny, revoke, rename, group, forget."""

from typing import Any, TextIO

import click

from fedpeft.cli.coordinator.target import Target, asking, target_options
from fedpeft.cli.options import json_option, say_json
from fedpeft.terminal import quoted

__all__ = ["clients"]


@click.group()
def clients() -> None:
    """List, approve, deny and revoke devices."""


@clients.command(name="ls")
@target_options
@json_option
def list_clients(target: Target, as_json: bool) -> None:
    """List every device: name, status, organisation, hardware."""
    with asking(target) as coordinator:
        devices = coordinator.ask("devices.list")
    if as_json:
        say_json(devices)
        return
    for device in devices:
        click.echo(_line(device))
    if not devices:
        where = ("--home", target.home) if target.home else ()
        invitation = quoted("fedpeft", "coordinator", "token", "create", *where)
        click.echo(f"no devices; `{invitation}` invites one", err=True)


@clients.command()
@target_options
@json_option
def pending(target: Target, as_json: bool) -> None:
    """List the devices that wait for approval. Each must tell you the code shown here."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        waiting = [device for device in coordinator.ask("devices.list") if device["status"] == "pending"]
    if as_json:
        say_json(waiting)
        return
    for device in waiting:
        code = device["code"] or "hidden"
        about = printable(f"{device['organisation']}  since {device['since'][:19]}")
        click.echo(f"{printable(device['name']):<24} code {printable(code)}  {about}")
    if waiting:
        click.echo("compare the code with the device's owner, then: clients approve NAME --code CODE", err=True)
    else:
        click.echo("no device waits for approval", err=True)


@clients.command()
@click.argument("name")
@click.option("--code", required=True, help="The code that the device's owner reads out to you.")
@target_options
def approve(name: str, code: str, target: Target) -> None:
    """Approve the waiting device NAME, if its code matches."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        device = coordinator.ask("devices.approve", device=name, code=code)
    click.echo(f"{name} of {printable(device['organisation'])} is approved; the device continues by itself")


@clients.command(name="approve-all")
@click.argument("file", type=click.File())
@target_options
def approve_all(file: TextIO, target: Target) -> int:
    """Approve many devices. FILE (`-`: standard input) has one `NAME CODE` per line."""
    from fedpeft.errors import FedpeftError
    from fedpeft.terminal import printable

    failed = 0
    with asking(target) as coordinator:
        for line in file:
            if not line.strip() or line.startswith("#"):
                continue
            name, _, code = line.strip().partition(" ")
            try:
                device = coordinator.ask("devices.approve", device=name, code=code)
                click.echo(f"{printable(name)} of {printable(device['organisation'])} is approved")
            except FedpeftError as error:
                failed = error.exit_code
                click.echo(f"{printable(name)}: {printable(str(error))}", err=True)
    return failed


@clients.command()
@click.argument("name")
@click.argument("label")
@target_options
def rename(name: str, label: str, target: Target) -> None:
    """Give the device NAME a label for lists; "" removes it.

    Devices have signed for each other's names, so among them it keeps the one that it enrolled under.
    """
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        device = coordinator.ask("devices.rename", device=name, label=label)
    click.echo(f"{name} is called {printable(device['label'] or name)}")


@clients.command()
@click.argument("name")
@click.argument("group")
@click.option("--remove", is_flag=True, help="Take it out of the group.")
@target_options
def group(name: str, group: str, remove: bool, target: Target) -> None:
    """Put the device NAME into GROUP. `coordinator submit --group GROUP` asks only its devices."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        device = coordinator.ask("devices.group", device=name, group=group, member=not remove)
    click.echo(f"{name} is in: {printable(', '.join(device['groups']) or 'no group')}")


@clients.command()
@click.argument("name")
@target_options
def delete(name: str, target: Target) -> None:
    """Delete a denied, revoked or departed device. Its keys are never accepted again."""
    with asking(target) as coordinator:
        coordinator.ask("devices.delete", device=name)
    click.echo(f"{name} is deleted")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="Shown to the device's owner.")
@target_options
def deny(name: str, reason: str, target: Target) -> None:
    """Deny the waiting device NAME."""
    with asking(target) as coordinator:
        coordinator.ask("devices.deny", device=name, reason=reason)
    click.echo(f"{name} is denied")


@clients.command()
@click.argument("name")
@click.option("--reason", default="", help="Shown to the device's owner.")
@target_options
def revoke(name: str, reason: str, target: Target) -> None:
    """Revoke the device NAME, from its next request on. Its update in a running round is dropped."""
    with asking(target) as coordinator:
        coordinator.ask("devices.revoke", device=name, reason=reason)
    click.echo(f"{name} is revoked; its keys are never accepted again")


@clients.command()
@click.argument("name")
@target_options
@json_option
def show(name: str, target: Target, as_json: bool) -> None:
    """Show everything known about the device NAME."""
    from fedpeft.terminal import printable

    with asking(target) as coordinator:
        device = coordinator.ask("devices.show", device=name)
    if as_json:
        say_json(device)
        return
    click.echo(_line(device))
    click.echo(f"  since        {printable(device['since'])}")
    click.echo(f"  identity     {device['identity']}")
    click.echo(f"  node key     sha256:{device['node_key_sha256']}")
    if device["certificate_until"]:
        click.echo(f"  certificate  serial {device['serial']}, until {device['certificate_until']}")
    click.echo(f"  joined by    token {printable(device['token'])}, code {printable(device['code'] or 'hidden')}")
    if device["reason"]:
        click.echo(f"  reason       {printable(device['reason'])}")


def _line(device: Any) -> str:
    from fedpeft.terminal import printable

    until = ""
    if device["certificate_until"]:
        ended = device["status"] == "expired"
        until = f"  certificate {'ended' if ended else 'until'} {device['certificate_until'][:10]}"
    groups = "".join(f"  [{name}]" for name in device.get("groups", ()))
    about = f"{device['organisation']:<24} {device['hardware']}{groups}"
    called = f"{device['label']} ({device['name']})" if device.get("label") else device["name"]
    return printable(f"{called:<24} {device['status']:<8} {about}{until}")
