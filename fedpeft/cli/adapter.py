"""`fedpeft adapter`: look at a finished adapter, try it, measure it on other data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.options import (
    AdapterPath,
    FiniteFloat,
    OutFolder,
    RunPath,
    json_option,
    map_option,
    run_argument,
    say_json,
)

if TYPE_CHECKING:
    from fedpeft.export.arithmetic import Rule
    from fedpeft.export.original import Moved
    from fedpeft_client.inference import TrainedModel

__all__ = ["command"]


@click.group(short_help="Inspect, try and evaluate a trained adapter.")
def command() -> None:
    """Inspect, try and evaluate a trained adapter."""


@command.command()
@click.argument("folder", metavar="ADAPTER", type=AdapterPath())
@click.option("--original", metavar="MODEL", help="Compare on the original weights: what the base was built from.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
@json_option
def inspect(folder: Path, original: str | None, store: Path | None, as_json: bool) -> None:
    """Say what ADAPTER holds, and how to load it: an exported folder, or a run, whose adapters/final is meant.

    \b
    Examples:
      fedpeft adapter inspect latest
      fedpeft adapter inspect runs/a/adapters/final --original models/smollm2
    """
    from dataclasses import asdict

    if as_json:
        moved = None if original is None else asdict(_moved(folder, original, store))
        say_json({"folder": str(folder), **_summary(folder), "original": moved})
        return
    _tell(folder)
    if original is not None:
        _tell_original(folder, original, store)


@command.command()
@run_argument
@click.option("--rank", type=click.IntRange(1), help="Cut LoRA and DyLoRA to this rank, for devices that run no more.")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Keep this method; the head stays. Repeatable."
)
@click.option("--whole-matrices", is_flag=True, help="Fold IA3 beside LoRA into whole matrices: peft alone loads it.")
@click.option("--full", is_flag=True, help="Write base and adapter as one model that transformers alone loads.")
@click.option("--out", type=OutFolder(), required=True, help="Where to write it.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
def export(
    run: Path,
    rank: int | None,
    methods: tuple[str, ...],
    whole_matrices: bool,
    full: bool,
    out: Path,
    store: Path | None,
) -> None:
    """Write the adapter of RUN again: for a class of devices, in one piece for peft, or as a whole model.

    \b
    Examples:
      fedpeft adapter export runs/a --rank 2 --method lora --out phones
      fedpeft adapter export runs/a --whole-matrices --out served
      fedpeft adapter export runs/a --full --out model
    """
    whole = _trained(run, store)
    part = whole.for_class(rank=rank, methods=methods or None, store=store) if rank or methods else None
    if full:
        written = (part or whole).export_merged(out)
        click.echo(
            f"{out}: {written.architecture}, loaded anew: logits within {written.max_difference:.1e} of the adapter's"
        )
        return
    (part or whole).export(out, whole_matrices=whole_matrices, part_of=whole if part else None)
    _tell(out)


@command.command()
@run_argument
@click.argument("texts", nargs=-1, required=True)
@click.option(
    "--as",
    "written_as",
    type=click.Choice(["messages", "prompt+completion", "instruction/input/output", "text"]),
    help="How a language model's examples were written. Default: as the run's were.",
)
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
@json_option
def predict(run: Path, texts: tuple[str, ...], written_as: str | None, store: Path | None, as_json: bool) -> None:
    """Apply the adapter of RUN to TEXTS: a class each, or an answer each.

    A language model is asked as it was trained: through the base's chat template after training on messages.
    """
    from fedpeft.tasks import Convention
    from fedpeft_server.run.run_view import read_run

    known = written_as or read_run(run).manifest.convention
    convention = Convention(known) if known else None
    answers = zip(texts, _trained(run, store).predict(texts, convention), strict=True)
    if as_json:
        say_json([{"text": text, "answer": answer} for text, answer in answers])
        return
    for text, answer in answers:
        click.echo(f"{answer}\t{text}")


@command.command("eval")
@run_argument
@click.argument("data")
@map_option
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
@json_option
def evaluate(run: Path, data: str, column_map: dict[str, str], store: Path | None, as_json: bool) -> None:
    """Measure the adapter of RUN on DATA (a file, a data set directory or builtin:NAME)."""
    from fedpeft.data import load_records

    records = load_records(data, column_map)
    score = _trained(run, store).evaluate(records)
    if as_json:
        loss, accuracy = score.loss_sum / score.examples, score.correct / score.examples
        say_json({"run": str(run), "loss": loss, "accuracy": accuracy, "predictions": score.examples})
        return
    click.echo(
        f"loss {score.loss_sum / score.examples:.4f}  accuracy {score.correct / score.examples:.4f}  "
        f"predictions {score.examples}"
    )


@command.command()
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
@click.option("--out", type=OutFolder(), required=True, help="Where to write it.")
@json_option
def merge(
    folders: tuple[Path, ...],
    rule: "Rule",
    weights: tuple[float, ...],
    density: float,
    rank: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Make one adapter of several ADAPTERS (exported folders, or runs).

    \b
    Examples:
      fedpeft adapter merge runs/a runs/b --rule ties --density 0.3 --out merged
      fedpeft adapter merge runs/a runs/b --rule svd --rank 8 --weight 1 --weight -0.5 --out merged
    """
    from fedpeft.export.merge import merge_adapters, read_exported

    strengths = weights or tuple(1.0 / len(folders) for _ in folders)
    sources = [read_exported(folder) for folder in folders]
    summary = merge_adapters(sources, strengths, rule, out, density=density, rank=rank, seed=seed)
    if as_json:
        say_json({"folder": str(out), **_summary(out)})
        return
    click.echo(f"{out}: {summary.peft_type} by {rule}, {summary.parameters:,} parameters, for {summary.base}")


@command.command()
@click.argument("runs", nargs=-1, required=True, type=RunPath())
@click.option("--data", required=True, help="A few examples of the new task: a file, a directory or builtin:NAME.")
@map_option
@click.option("--tries", type=click.IntRange(1), default=60, show_default=True, help="Mixtures to evaluate.")
@click.option("--out", type=OutFolder(), required=True, help="Where to write it.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Where base artifacts lie.")
@json_option
def hub(
    *, runs: tuple[Path, ...], data: str, column_map: dict[str, str], tries: int, out: Path, store: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Find the mixture of RUNS' adapters that suits a new task (LoRAHub): no gradient, a few examples.

    The runs must have one configuration and one run.seed.
    """
    from fedpeft.data import load_records
    from fedpeft_server.run.run_view import last_state, read_run

    records = load_records(data, column_map)
    model = _trained(runs[0], store)
    found = model.mix([last_state(read_run(run)) for run in runs], records, tries=tries)
    if as_json:
        model.export(out)
        weights = {str(run): weight for run, weight in zip(runs, found.weights, strict=True)}
        say_json({"folder": str(out), "loss": found.loss, "tries": found.tries, "weights": weights})
        return
    for run, weight, loss in zip(runs, found.weights, found.single_losses[1:], strict=True):
        click.echo(f"{weight:+.3f}  {run}  (alone: loss {loss:.4f})")
    click.echo(f"loss {found.loss:.4f} after {found.tries} tries; the untrained adapter {found.single_losses[0]:.4f}")
    model.export(out)
    click.echo(f"written to {out}")


def _trained(run: Path, store: Path | None) -> "TrainedModel":
    from fedpeft_client.inference import TrainedModel
    from fedpeft_server.run.run_view import last_state, read_run

    view = read_run(run)
    return TrainedModel.load(view.config(), last_state(view), base=view.manifest.base_digest, store=store)


def _summary(folder: Path) -> "dict[str, Any]":
    """What the export wrote about itself."""
    import json

    from fedpeft.errors import DataInvalid

    try:
        summary: dict[str, Any] = json.loads((folder / "inspect.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataInvalid(
            f"Expected an adapter exported by fedpeft in {folder}, found no inspect.json that can be read ({error}); "
            "name a run, its adapters/final, or what `fedpeft adapter export` wrote."
        ) from error
    return summary


def _tell(folder: Path) -> None:
    summary = _summary(folder)
    click.echo(f"base         {summary['base']}  {summary['base_digest']}")
    click.echo(f"parameters   {summary['parameters']:,}")
    if (scheme := summary.get("base_quantize", "")) not in ("", "none"):
        click.echo(f"trained on   {scheme} weights; another model on the original ones (--original MODEL: how far)")
    if names := summary.get("labels"):
        click.echo(f"classes      {', '.join(names)}")
    blocks, gap = ", ".join(summary["peft_blocks"]), _gap(summary["peft_max_logit_difference"])
    click.echo(f"PEFT files   {summary['peft_type']}: {blocks}{gap}")
    if whole := summary.get("whole_matrices"):
        click.echo(f"folded       {len(whole)} matrices are whole, with what was trained on them: {', '.join(whole)}")
    if (far := summary.get("from_run_max_logit_difference")) is not None:
        click.echo(f"a part       of its run's adapter (logits within {far:.1e} of the whole)")
    if summary["peft_lacks"]:
        click.echo(f"not in them  {', '.join(summary['peft_lacks'])}")
        gap = _gap(summary["union_max_logit_difference"])
        click.echo(f"whole        union.safetensors: {len(summary['union_blocks'])} blocks{gap}")
        click.echo("load         fedpeft.export.load_union(model, folder)")
    else:
        click.echo("load         peft.PeftModel.from_pretrained(base_model, folder)")


def _tell_original(folder: Path, model: str, store: Path | None) -> None:
    moved = _moved(folder, model, store)
    click.echo(
        f"original     logits within {moved.adapter_on_original:.1e} of the trained model; "
        f"the adapter's whole effect is {moved.effect:.1e}"
    )


def _moved(folder: Path, model: str, store: Path | None) -> "Moved":
    """How far the adapter is on the original weights."""
    from fedpeft.base import ArtifactStore, build, default_store
    from fedpeft.errors import ConfigInvalid
    from fedpeft.export.original import moved_by_the_original_weights

    summary = _summary(folder)
    if summary["peft_lacks"]:
        raise ConfigInvalid("Expected an adapter that the PEFT files hold whole, found one that needs load_union.")
    place = store or default_store()
    trained = ArtifactStore(place).get(summary["base_digest"])
    return moved_by_the_original_weights(folder, trained, build(model, quantize="none", store=place))


def _gap(difference: float | None) -> str:
    return "" if difference is None else f" (logits within {difference:.1e} of the trained model)"
