"""`fedpeft runs compare`: runs side by side, and what their configurations differ in."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.options import RunPath, json_option, say_json

if TYPE_CHECKING:
    from fedpeft_server.run.run_view import RunView

__all__ = ["compare"]


@click.command()
@click.argument("runs", type=RunPath(), nargs=-1, required=True, metavar="RUN RUN...")
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs side by side. Metrics of the kept state, bytes, time, and the settings that differ.

    \b
    Example:
      fedpeft runs compare airlines-7f3a latest
    """
    from fedpeft_server.run.run_view import read_run

    if len(runs) < 2:
        raise click.UsageError("Expected two runs or more to compare, found one.")
    views = [read_run(path) for path in runs]
    columns = [_figures(view) for view in views]
    differing = _differing(views)
    if as_json:
        figures = [{"run": view.manifest.run_id, **column} for view, column in zip(views, columns, strict=True)]
        say_json({"runs": figures, "settings": differing})
        return
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = {name: [column.get(name) for column in columns] for name in names} | differing
    _print([view.manifest.run_id for view in views], rows)


def _figures(view: "RunView") -> dict[str, Any]:
    """What a run came to: of the state that it keeps, as far as it was measured."""
    from fedpeft_server.run.verdict import best_row, rounds_done

    rounds = view.config().rounds
    best = best_row(view.rounds, rounds)
    measured = {} if best is None else {"loss": best.loss, "accuracy": best.accuracy, **best.metrics}
    return {
        "state": view.state,
        "rounds": rounds_done(view.rounds, rounds),
        **{name: value for name, value in measured.items() if value is not None},
        "up_mb": sum(row.bytes_up for row in view.rounds) / 1e6,
        "down_mb": sum(row.bytes_down for row in view.rounds) / 1e6,
        "seconds": sum(row.seconds for row in view.rounds),
        "base": view.manifest.base_digest[:19],
        "data": view.manifest.data_digest[:19],
    }


def _differing(views: "list[RunView]") -> dict[str, list[str | None]]:
    """The keys of resolved.toml whose values are not the same everywhere, with each run's; None: it has no such key."""
    from fedpeft.config.resolved import flat

    settings = [flat(view.config().model_dump(mode="json")) for view in views]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    found = {key: [one.get(key) for one in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1 and key != "run.name"}


def _print(names: list[str], rows: dict[str, list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedpeft.terminal import printable

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(printable(name), justify="right", overflow="fold")
    for name, values in rows.items():
        table.add_row(printable(name), *(printable(_text(value)) for value in values))
    Console(highlight=False).print(table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
