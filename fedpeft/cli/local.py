"""`fedpeft local`: a real federation on this machine."""

from pathlib import Path

import click

from fedpeft.cli.options import json_option, say_json, store_option
from fedpeft.terminal import quoted, verbosity

__all__ = ["command"]


@click.group("local")
def command() -> None:
    """Run a real federation on this machine: a coordinator and its devices as processes."""


@command.command()
@click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. rounds.count=3. Repeatable."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@click.option(
    "--resume", type=click.Path(path_type=Path, file_okay=False), help="Continue an interrupted federation: its folder."
)
@store_option
@json_option
def up(
    config: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    resume: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Run CONFIG on a coordinator and one device per client. Each is a process on this machine.

    Each is a process of its own: enrolled by token, over TLS, with the protocol of a deployment. They end with this
    command; everything they know stays in one folder below OUT.

    \b
    Examples:
      fedpeft local up airlines --set rounds.count=2
      fedpeft local up --resume runs/20261122T001231Z-airlines-7f3a-local
    """
    from rich.console import Console

    from fedpeft.api.local import local_up
    from fedpeft_sim.live import LiveScreen

    if (config is None) == (resume is None):
        raise click.UsageError("Expected either a CONFIG file or --resume FOLDER.")
    if resume is not None and overrides:
        raise click.UsageError(
            "A run is resumed with the configuration that it started with; to change settings, start a new run."
        )
    console = Console(stderr=as_json)
    with LiveScreen(console, quiet=verbosity().quiet) as screen:
        done = local_up(config, overrides=overrides, out=out, resume=resume, store=store, screen=screen)
    if as_json:
        say_json({"folder": str(done.folder), **done.result.as_dict()})
        return
    console.print(f"adapter  {done.result.adapter}", highlight=False, markup=False, soft_wrap=True)
    console.print("next:", highlight=False, markup=False)
    coordinator, device = done.folder / "coordinator", done.folder / "devices" / done.clients[0]
    for line in (
        quoted("fedpeft", "runs", "show", done.result.path),
        quoted("fedpeft", "coordinator", "status", "--home", coordinator),
        quoted("fedpeft", "client", "status", "--home", device),
    ):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
