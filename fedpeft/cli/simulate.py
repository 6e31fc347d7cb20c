"""`fedpeft simulate`: a whole federation on one machine."""

import sys
from pathlib import Path

import click

from fedpeft.cli.options import RunPath, json_option, map_option, model_option, say_json
from fedpeft.terminal import verbosity

__all__ = ["command"]


SCENARIOS = ("airlines", "smollm")
"""Configurations that come with the package, by name."""


def _bundled(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """The file of a bundled scenario, unless a file of that name is here."""
    if value is None or value.exists() or str(value) not in SCENARIOS:
        return value
    from importlib.resources import files

    return Path(str(files("fedpeft_sim"))) / "scenarios" / f"{value}.toml"


@click.command("simulate")
@click.argument("config", required=False, type=click.Path(path_type=Path, dir_okay=False), callback=_bundled)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. rounds.count=3.")
@model_option("Override base.model.")
@click.option("--data", help="Override data.source.")
@map_option
@click.option("--rounds", type=int, help="Override rounds.count.")
@click.option("--seed", type=int, help="Override run.seed.")
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Override performance.engine.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True)
@click.option("--resume", type=RunPath(), help="Go on with a killed run: its directory, its name, or latest.")
@click.option("--baselines/--no-baselines", default=True, show_default=True, help="Also train alone and centralised.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
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
    """Run the federation that CONFIG (a run.toml, or airlines or smollm) describes; nothing leaves this machine.

    \b
    Examples:
      fedpeft simulate airlines
      fedpeft simulate run.toml --model ./my-model --data notes.csv --map text=note --rounds 3
      fedpeft simulate --resume runs/20261122T001231Z-airlines-7f3a
    """
    import json

    from rich.console import Console

    from fedpeft.config import load
    from fedpeft.data.formats import located
    from fedpeft.files import expect_folder

    if (config is None) == (resume is None):
        raise click.UsageError("Expected either a CONFIG file or --resume RUN.")
    changed = [
        f"{key}={json.dumps(value)}"
        for key, value in _shortcuts(model, data, rounds, seed, engine)
        if value is not None
    ]
    changed += [f"data.map.{ours}={json.dumps(theirs)}" for ours, theirs in column_map.items()]
    if resume is not None and (changed or overrides):
        raise click.UsageError("A run is resumed as it was started; start a new one to change its config.")
    path = config if config is not None else (resume or out) / "resolved.toml"
    loaded = load(path, overrides=[*overrides, *changed], simulation=True)
    loaded = loaded.model_copy(update={"directory": out if resume is None else resume.parent})
    if resume is None:
        source = located(loaded.data.source)
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"source": source})})

    for folder in (out,) if store is None else (out, store):
        expect_folder(folder)
    console = Console(stderr=as_json)  # one JSON value is all that goes to the standard output
    if not verbosity().quiet:
        said = f"config {path}; {len(changed) + len(overrides)} overrides; loading"
        console.print(said, highlight=False, markup=False)
    run = _run(console, path, loaded, resume, baselines, store)
    if as_json:
        _say_outcome(run)


def _say_outcome(run: Path) -> None:
    from dataclasses import asdict

    from fedpeft_server.run.run_view import read_run

    view = read_run(run)
    summary = None if view.summary is None else asdict(view.summary)
    say_json({"run": str(run), "state": view.state, "adapter": str(run / "adapters" / "final"), "summary": summary})


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


def _run(console: object, path: Path, config: object, resume: Path | None, baselines: bool, store: Path | None) -> Path:
    """Apart from ``command`` so that the heavy imports come after every check of the arguments."""
    from rich.console import Console

    from fedpeft.config import RunConfig
    from fedpeft.files import read_text
    from fedpeft_server.run.run_view import read_run
    from fedpeft_sim.live import LiveScreen
    from fedpeft_sim.outcome import show_outcome
    from fedpeft_sim.simulate import prepare, simulate

    if not isinstance(console, Console) or not isinstance(config, RunConfig):
        raise TypeError("a Console and a RunConfig")
    with LiveScreen(console, rounds=config.rounds.count, methods={}, quiet=verbosity().quiet) as loading:
        base_digest = None if resume is None else read_run(resume).manifest.base_digest
        simulation = prepare(config, loading, store=store, base_digest=base_digest)
    clients = simulation.population.clients
    methods = {client.name: str(client.capacity) for client in clients}
    with LiveScreen(console, rounds=config.rounds.count, methods=methods, quiet=verbosity().quiet) as screen:
        run = simulate(
            simulation,
            screen,
            source=read_text(path),
            command=["fedpeft", *sys.argv[1:]],
            resume=resume,
            baselines=baselines,
        )
    show_outcome(console, run)
    return run
