"""`fedpeft data check`: look at a data set before training on it. Everything stays on this machine."""

import sys
from typing import TYPE_CHECKING

import click

from fedpeft.cli.options import FiniteFloat, TaskKind, json_option, map_option, model_option, say_json
from fedpeft.terminal import counted, verbosity

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.text import Text

    from fedpeft.data.check import DataReport, Example

__all__ = ["command"]

SHOWN_CHARACTERS = 600
BAR_WIDTH = 24
PROGRESS_ROWS = 50_000


@click.group("data")
def command() -> None:
    """Check a data set before training on it."""


@command.command("check")
@click.argument("source")
@map_option
@click.option("--task", "kind", type=TaskKind(), help="Task. Default: detected from the columns.")
@model_option("Count this base model's tokens, and check that it fits; without it, words.")
@click.option(
    "--max-length", type=click.IntRange(8, 8192), help="Longest example, in tokens. Default: run.toml's default."
)
@click.option("--holdout", type=FiniteFloat(0, 1, min_open=True, max_open=True), default=0.2, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the held-out split.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", hidden=True)
@json_option
def check_command(
    *, source: str, column_map: dict[str, str], kind: str | None, model: str | None, max_length: int | None,
    holdout: float, seed: int, form: str, as_json: bool,
) -> None:  # fmt: skip
    """Check a data set before training. Reports the task, examples, lengths, labels, empty rows, duplicates.

    SOURCE is a JSONL, CSV or Parquet file, a pattern in quotes, a Hugging Face dataset directory,
    builtin:airline-tweets or builtin:stdlib-docstrings. Unusable rows are listed; the exit code is
    then 3.

    \b
    Examples:
      fedpeft data check builtin:airline-tweets
      fedpeft data check notes.csv --map text=note,label=diagnosis --base ./my-model
      fedpeft data check notes.csv --map text=note,label=diagnosis,person=patient
    """
    from fedpeft.api.data import data_check
    from fedpeft.errors import DataInvalid

    report = data_check(
        source, columns=column_map, task=kind, model=model, max_length=max_length, holdout=holdout, seed=seed,
        progress=_progress(),
    )  # fmt: skip
    if as_json or form == "json":
        say_json(report.as_json())
    else:
        from rich.console import Console

        show(report, Console())
    if report.problem_count:
        count = counted(report.problem_count, "problem")
        raise DataInvalid(f"Expected usable rows, found {count}.", problems=report.problems)


def _progress() -> "Callable[[int], None]":
    """Counts rows on a terminal's last line while a large file is read; silent elsewhere."""
    shown = 0

    def progress(rows: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and not verbosity().quiet and rows - shown >= PROGRESS_ROWS:
            shown = rows
            click.echo(f"\r{rows:,} rows", nl=False, err=True)

    return progress


def show(report: "DataReport", console: "Console") -> None:
    """The report for people."""
    from rich.table import Table
    from rich.text import Text

    from fedpeft.terminal import printable

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    files = f"{len(report.files)} files, {report.files[0]} ..." if len(report.files) > 1 else "".join(report.files)
    table.add_row("read", Text(files))
    table.add_row("task", f"{report.kind}, from the columns {report.convention.value}")
    table.add_row("examples", f"{report.examples:,}, of which {report.usable:,} usable")
    table.add_row("empty texts", f"{report.empties:,}")
    table.add_row("duplicates", f"{report.duplicates:,}" + _contradictions(report))
    split = report.split
    table.add_row(
        "held out", f"{split.held_out:,} of {split.train + split.held_out:,}; {split.shared} also in training"
    )
    if report.people is not None:
        people = report.people
        spread = ", ".join(f"{'most' if p == 100 else f'{p} %'} {n:,}" for p, n in people.percentiles.items())
        nobodys = f"; {people.nobodys:,} rows are nobody's" if people.nobodys else ""
        table.add_row("people", f"{people.count:,}; examples of each: {spread or 'none'}{nobodys}")
    if report.lengths is not None:
        lengths = report.lengths
        unit = "words (approximate: name a --base to count its tokens)" if lengths.approximate else "tokens"
        spread = ", ".join(f"{'longest' if p == 100 else f'{p} %'} {n:,}" for p, n in lengths.percentiles.items())
        table.add_row("lengths", f"{spread} {unit}")
        share = lengths.truncated / report.usable
        table.add_row("truncated", f"{lengths.truncated:,} ({share:.1%}) at {lengths.max_length:,}")
    console.print(table)
    for name, count in report.labels.items():
        bar = "█" * max(1, round(BAR_WIDTH * count / max(report.labels.values())))
        console.print(Text(f"  {count:>9,} {count / report.usable:6.1%} {bar} {printable(name)}"))
    for remark in report.remarks:
        console.print(Text(f"note: {printable(remark)}", style="yellow"))
    for example in report.rendered:
        console.print(Text(f"\n{example.origin}", style="bold"))
        console.print(_example_text(example, before_target="  " if report.labels else ""))
    if report.rendered:
        console.print(Text("\nIn «»: what the model is trained to produce.", style="dim"))


def _contradictions(report: "DataReport") -> str:
    return f"; {report.contradictions:,} texts have several labels" if report.contradictions else ""


def _example_text(example: "Example", *, before_target: str) -> "Text":
    """The parts in a row, what is trained on in «» and underlined, long parts cut."""
    from rich.text import Text

    from fedpeft.terminal import printable

    text = Text()
    for part in example.parts:
        shown = printable(part.text, keep_lines=True)
        if len(shown) > SHOWN_CHARACTERS:
            half = SHOWN_CHARACTERS // 2
            shown = f"{shown[:half]} [... {len(shown) - 2 * half:,} characters ...] {shown[-half:]}"
        if part.trained:
            text.append(before_target)
            text.append(f"«{shown}»", style="underline")
        else:
            text.append(shown)
    return text
