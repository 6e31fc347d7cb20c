"""`fedpeft sweep`: simulations with different settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import json_option, say_json, store_option
from fedpeft.terminal import verbosity

if TYPE_CHECKING:
    from fedpeft.api.sweep_result import Sweep

__all__ = ["command"]


@click.command("sweep")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--vary",
    multiple=True,
    required=True,
    metavar="KEY=SPACE",
    help="What to vary: KEY=low..high, KEY=log:low..high or KEY=a,b,c. Repeatable.",
)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="How many in all.")
@click.option("--metric", default="loss", show_default=True, help="Of the state that a run keeps.")
@click.option("--minimise", is_flag=True, help="Less is better, for a metric of the task that is an error.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key in every trial. Repeatable."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sweep"),
    show_default=True,
    help="The sweep's folder; the same command with the same folder goes on.",
)
@store_option
@json_option
def command(
    config: Path,
    vary: tuple[str, ...],
    trials: int,
    metric: str,
    minimise: bool,
    overrides: tuple[str, ...],
    out: Path,
    store: Path | None,
    as_json: bool,
) -> None:
    """Simulate CONFIG with different settings, chosen by Optuna (needs the extra `sweep`).

    \b
    Example:
      fedpeft sweep run.toml --vary train.learning_rate=log:1e-4..0.1 --vary adapter.lora.rank=4,8,16 --trials 12
    """
    from rich.console import Console

    from fedpeft.api.sweep import sweep
    from fedpeft.api.sweep_space import space_of
    from fedpeft_sim.live import LiveScreen

    pairs = [one.partition("=") for one in vary]
    if any(not key or not sign for key, sign, _ in pairs):
        raise click.UsageError("Expected --vary KEY=SPACE, such as adapter.lora.rank=4,8,16.")
    with LiveScreen(Console(stderr=as_json), quiet=verbosity().quiet) as screen:
        found = sweep(
            config,
            vary={key: space_of(space) for key, _, space in pairs},
            trials=trials,
            metric=metric,
            maximise=False if minimise else None,
            overrides=overrides,
            out=out,
            store=store,
            progress=screen,
        )
    if as_json:
        say_json(_answer(found))
    else:
        _print(found)


def _answer(found: "Sweep") -> dict[str, object]:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            found.metric: trial.value,
            "settings": dict(trial.settings),
            "run": None if trial.run is None else str(trial.run),
        }
        for trial in found.trials
    ]
    return {"sweep": str(found.path), "best": None if found.best is None else found.best.number, "trials": rows}


def _print(found: "Sweep") -> None:
    from rich.console import Console
    from rich.table import Table

    from fedpeft.terminal import printable

    keys = list(dict.fromkeys(key for trial in found.trials for key in trial.settings))
    table = Table(box=None, pad_edge=False)
    for name in ("trial", found.metric, *keys, "run"):
        table.add_column(printable(name), justify="left" if name == "run" else "right", overflow="fold")
    sign = 1 if found.lower_is_better else -1
    for trial in sorted(found.trials, key=lambda one: (one.value is None, sign * (one.value or 0.0))):
        value = trial.state if trial.value is None else f"{trial.value:.4f}"
        settings = [_short(trial.settings.get(key)) for key in keys]
        table.add_row(str(trial.number), value, *map(printable, settings), trial.run.name if trial.run else "")
    Console().print(table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
