"""`fedpeft simulate`: a whole federation on one machine."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import RunPath, json_option, map_option, model_option, say_json, store_option
from fedpeft.terminal import verbosity

if TYPE_CHECKING:
    from fedpeft.api.result import Result

__all__ = ["command"]


@click.command("simulate")
@click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. rounds.count=3. Repeatable."
)
@model_option("Override base.model.")
@click.option("--data", help="Override data.source.")
@map_option
@click.option("--rounds", type=int, help="Override rounds.count.")
@click.option("--seed", type=int, help="Override run.seed.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Override performance.engine.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@click.option("--resume", type=RunPath(), help="Continue an interrupted run: its directory, its name, or latest.")
@click.option(
    "--baselines/--no-baselines",
    default=False,
    show_default=True,
    help="Also train each client alone, and all data in one place, to compare: three times the work.",
)
@store_option
@json_option
def command(
    config: Path | None,
    overrides: tuple[str, ...],
    model: str | None,
    data: str | None,
    column_map: dict[str, str],
    rounds: int | None,
    seed: int | None,
    engine: str | None,
    out: Path,
    resume: Path | None,
    baselines: bool,
    store: Path | None,
    as_json: bool,
) -> None:
    """Simulate the federation in CONFIG on this machine: a run.toml, or the examples airlines and smollm.

    \b
    Examples:
      fedpeft simulate airlines
      fedpeft simulate run.toml --model ./my-model --data notes.csv --map text=note --rounds 3
      fedpeft simulate --resume runs/20261122T001231Z-airlines-7f3a
    """
    import json

    if (config is None) == (resume is None):
        raise click.UsageError("Expected either a CONFIG file or --resume RUN.")
    changed = [
        f"{key}={json.dumps(value)}"
        for key, value in _shortcuts(model, data, rounds, seed, engine)
        if value is not None
    ]
    changed += [f"data.map.{ours}={json.dumps(theirs)}" for ours, theirs in column_map.items()]
    if resume is not None and (changed or overrides):
        raise click.UsageError(
            "A run is resumed with the configuration that it started with; to change settings, start a new run."
        )
    result = _run(config, [*overrides, *changed], out, resume, baselines, store, as_json)
    if as_json:
        answer = result.as_dict()
        say_json({key: answer[key] for key in ("run", "state", "adapter", "summary")})


def _shortcuts(
    model: str | None, data: str | None, rounds: int | None, seed: int | None, engine: str | None
) -> list[tuple[str, str | int | None]]:
    return [
        ("base.model", model),
        ("data.source", data),
        ("rounds.count", rounds),
        ("run.seed", seed),
        ("performance.engine", engine),
    ]


def _run(
    config: Path | None,
    overrides: list[str],
    out: Path,
    resume: Path | None,
    baselines: bool,
    store: Path | None,
    as_json: bool,
) -> "Result":
    """Apart from ``command`` so that the heavy imports come after every check of the arguments."""
    from rich.console import Console

    from fedpeft.api.simulation import simulate
    from fedpeft_sim.live import LiveScreen

    console = Console(stderr=as_json)  # one JSON value is all that goes to the standard output
    with LiveScreen(console, quiet=verbosity().quiet) as screen:
        result = simulate(
            config,
            overrides=overrides,
            out=out,
            resume=resume,
            baselines=baselines,
            progress=screen,
            store=store,
            command=["fedpeft", *sys.argv[1:]],
        )
    from fedpeft_sim.outcome import show_outcome

    show_outcome(console, result.path)
    return result
