"""`fedpeft doctor`: a table of checks, what each found, and how to fix it."""

from pathlib import Path

import click

from fedpeft.cli.homes import coordinator_home, device_home
from fedpeft.cli.options import json_option, say_json

__all__ = ["command"]


@click.command(short_help="Check a coordinator's or a device's set-up.")
@click.option("--role", type=click.Choice(["coordinator", "client"]), required=True, help="Which side to check.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="The home to check. Default: the default home of the role.",
)
@json_option
def command(role: str, home: Path | None, as_json: bool) -> int:
    """Check the set-up of a coordinator or a device. Changes nothing.

    Exits with the code of the first check that failed: 3 settings, 4 enrolment, 5 network, 6 integrity, 8 machine.
    """
    from dataclasses import asdict

    from fedpeft.clock import SystemClock

    if role == "coordinator":
        from fedpeft_server.doctor import check_coordinator

        findings = check_coordinator(coordinator_home(home), SystemClock())
    else:
        from fedpeft_client.doctor import check_device

        findings = check_device(device_home(home), SystemClock())
    failed = [finding for finding in findings if not finding.sound]
    code = failed[0].exit_code if failed else 0
    if as_json:
        say_json({"role": role, "exit_code": code, "checks": [asdict(finding) for finding in findings]})
        return code
    for finding in findings:
        click.echo(f"{'ok  ' if finding.sound else 'FAIL'}  {finding.check:<12}  {finding.result}")
        if finding.remedy:
            click.echo(f"{'':20}how to fix: {finding.remedy}")
    click.echo(f"{len(failed)} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
    return code
