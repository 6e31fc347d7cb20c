"""`fedpeft unlearn`: a simulated run again, without one of its devices."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from fedpeft.cli.options import OutFolder, RunPath, json_option, run_argument, say_json, store_option
from fedpeft.terminal import verbosity

__all__ = ["command"]


@click.command("unlearn")
@run_argument
@click.option("--device", required=True, metavar="NAME", help="The client to forget.")
@click.option("--data", help="Where the data of RUN lie now, if elsewhere.")
@click.option("--out", type=OutFolder(), help="Where the new run directory is made. Default: beside RUN.")
@click.option("--resume", type=RunPath(), help="Continue a run that this command began and did not finish.")
@store_option
@json_option
def command(
    run: Path, device: str, data: str | None, out: Path | None, resume: Path | None, store: Path | None, as_json: bool
) -> None:
    """Make every round of RUN, a finished simulation, again without one device, and certify it.

    The new run is what RUN would be if the device had never taken part; the
    certificate says whether byte for byte. RUN stays until you delete it.

    \b
    Example:
      fedpeft unlearn runs/20261122T001231Z-airlines-7f3a --device united
    """
    from rich.console import Console

    from fedpeft.api.unlearning import unlearn
    from fedpeft_sim.live import LiveScreen

    console = Console(stderr=as_json)
    with LiveScreen(console, quiet=verbosity().quiet) as screen:
        done = unlearn(
            run,
            device,
            data,
            out=out,
            resume=resume,
            progress=screen,
            store=store,
            command=["fedpeft", *sys.argv[1:]],
        )
    if as_json:
        say_json({"run": str(done.result.path), "adapter": str(done.result.adapter)} | asdict(done.certificate))
        return
    console.print(done.certificate.to_text(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"run  {done.result.path}", highlight=False, markup=False, soft_wrap=True)
