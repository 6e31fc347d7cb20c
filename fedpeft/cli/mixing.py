"""`fedpeft adapter merge` and `hub`: one adapter of several."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.asking import told_metrics
from fedpeft.cli.options import (
    AdapterPath,
    FiniteFloat,
    OutFolder,
    RunPath,
    json_option,
    map_option,
    say_json,
    store_option,
)

if TYPE_CHECKING:
    from fedpeft.export.arithmetic import Rule

__all__ = ["hub", "merge", "summary_of"]


@click.command()
@click.argument("folders", metavar="ADAPTERS...", nargs=-1, required=True, type=AdapterPath())
@click.option(
    "--rule",
    type=click.Choice(["linear", "cat", "svd", "ties", "dare"]),
    default="linear",
    show_default=True,
    help="How factors are combined; all but linear need LoRA files.",
)
@click.option(
    "--weight", "weights", type=FiniteFloat(), multiple=True, help="One for each folder; default: equal, sum 1."
)
@click.option("--density", type=FiniteFloat(0, 1, min_open=True), default=0.5, show_default=True)
@click.option("--rank", type=click.IntRange(1), help="Of svd; default: the largest of the folders'.")
@click.option("--seed", default=0, show_default=True, help="Of dare.")
@click.option("--data", metavar="FILE", help="Measure each adapter and what becomes of them on these examples.")
@map_option
@store_option
@click.option("--out", type=OutFolder(), required=True, help="Folder to write to.")
@json_option
def merge(
    *,
    folders: tuple[Path, ...],
    rule: "Rule",
    weights: tuple[float, ...],
    density: float,
    rank: int | None,
    seed: int,
    data: str | None,
    column_map: dict[str, str],
    store: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Merge several adapters into one. ADAPTERS are exported folders, or runs.

    \b
    Examples:
      fedpeft adapter merge runs/a runs/b --rule ties --density 0.3 --out merged
      fedpeft adapter merge runs/a runs/b --rule svd --rank 8 --weight 1 --weight -0.5 --out merged
      fedpeft adapter merge runs/a runs/b --rule dare --data notes.csv --out merged
    """
    from fedpeft.export.merge import merge_adapters, read_exported

    strengths = weights or tuple(1.0 / len(folders) for _ in folders)
    sources = [read_exported(folder) for folder in folders]
    summary = merge_adapters(sources, strengths, rule, out, density=density, rank=rank, seed=seed)
    scores = {} if data is None else _measured((*folders, out), data, column_map, store)
    if as_json:
        say_json({"folder": str(out), **summary_of(out), "measured": scores or None})
        return
    click.echo(f"{out}: {summary.peft_type} by {rule}, {summary.parameters:,} parameters, for {summary.base}")
    for folder, score in scores.items():
        click.echo(f"{told_metrics(score)}  {folder}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RunPath())
@click.option("--data", required=True, help="A few examples of the new task: a file, a directory or builtin:NAME.")
@map_option
@click.option("--tries", type=click.IntRange(1), default=60, show_default=True, help="Mixtures to evaluate.")
@click.option("--out", type=OutFolder(), required=True, help="Folder to write to.")
@store_option
@json_option
def hub(
    *, runs: tuple[Path, ...], data: str, column_map: dict[str, str], tries: int, out: Path, store: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Mix RUNS' adapters for a new task (LoRAHub). Needs a few examples and no gradients.

    The runs must have one configuration and one run.seed. Of each the state that adapters/final holds is mixed.
    """
    from fedpeft.api.kept import state_of, trained_model
    from fedpeft.data import load_records
    from fedpeft_server.run.run_view import read_run

    records = load_records(data, column_map)
    convention = read_run(runs[0]).manifest.convention or ""
    model = trained_model(runs[0], store=store)
    found = model.mix([state_of(read_run(run), store=store) for run in runs], records, tries=tries)
    if as_json:
        model.export(out, convention=convention)
        weights = {str(run): weight for run, weight in zip(runs, found.weights, strict=True)}
        say_json({"folder": str(out), "loss": found.loss, "tries": found.tries, "weights": weights})
        return
    for run, weight, loss in zip(runs, found.weights, found.single_losses[1:], strict=True):
        click.echo(f"{weight:+.3f}  {run}  (alone: loss {loss:.4f})")
    click.echo(f"loss {found.loss:.4f} after {found.tries} tries; the untrained adapter {found.single_losses[0]:.4f}")
    model.export(out, convention=convention)
    click.echo(f"written to {out}")


def _measured(
    folders: tuple[Path, ...], data: str, column_map: dict[str, str], store: Path | None
) -> dict[str, dict[str, float]]:
    """Every metric of each exported adapter on the same examples."""
    from fedpeft.base import default_store
    from fedpeft.data import load_records
    from fedpeft_client.inference import ReceivedModel

    records, found = load_records(data, column_map), {}
    for folder in folders:
        model = ReceivedModel.load(folder, store or default_store())
        found[str(folder)] = model.metrics(model.evaluate(records))
    return found


def summary_of(folder: Path) -> "dict[str, Any]":
    """What an export wrote about itself.

    Raises:
        DataInvalid: it is no export.
        IntegrityFailed: what it wrote is damaged.
    """
    from dataclasses import asdict

    from fedpeft.export.summary import read_summary

    return asdict(read_summary(folder))
