"""`fedpeft adapter`: look at a finished adapter, use it, measure it on other data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedpeft.cli.asking import (
    asked_as_trained,
    say_evaluation,
    say_predictions,
    with_how,
    with_prediction_options,
)
from fedpeft.cli.harness import harness
from fedpeft.cli.mixing import hub, merge, summary_of
from fedpeft.cli.options import (
    AdapterPath,
    OutFolder,
    json_option,
    run_argument,
    say_json,
    store_option,
    with_evaluation_options,
)
from fedpeft.cli.serve import serve

if TYPE_CHECKING:
    from fedpeft.export.original import Moved
    from fedpeft.tasks.generated import Generation

__all__ = ["command"]


@click.group(short_help="Inspect, try and evaluate a trained adapter.")
def command() -> None:
    """Inspect, try and evaluate a trained adapter.

    Of a RUN, every command uses the state in adapters/final: the best evaluated one by rounds.metric, or else
    the last one. While a run goes on, that is what adapters/final would hold if it ended now; inspect and merge
    need a finished run.
    """


@command.command()
@click.argument("folder", metavar="ADAPTER", type=AdapterPath())
@click.option("--original", metavar="MODEL", help="Compare with the original weights, from which the base was built.")
@store_option
@json_option
def inspect(folder: Path, original: str | None, store: Path | None, as_json: bool) -> None:
    """Show what an adapter contains and how to load it. ADAPTER is an exported folder, or a run.

    \b
    Examples:
      fedpeft adapter inspect latest
      fedpeft adapter inspect runs/a/adapters/final --original models/smollm2
    """
    from dataclasses import asdict

    if as_json:
        moved = None if original is None else asdict(_moved(folder, original, store))
        say_json({"folder": str(folder), **summary_of(folder), "original": moved})
        return
    _tell(folder)
    if original is not None:
        _tell_original(folder, original, store)


@command.command()
@run_argument
@click.option("--rank", type=click.IntRange(1), help="Truncate LoRA and DyLoRA to this rank, for smaller devices.")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Export only this method and the head. Repeatable."
)
@click.option(
    "--whole-matrices",
    is_flag=True,
    help="Fold IA3 and LoRA into whole matrices, so that peft loads it without fedpeft.",
)
@click.option("--full", is_flag=True, help="Merge base and adapter into one model for transformers.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["peft", "gguf"]),
    default="peft",
    show_default=True,
    help="gguf: write OUT/adapter.gguf for llama.cpp's --lora.",
)
@click.option("--out", type=OutFolder(), required=True, help="Folder to write to.")
@store_option
def export(
    run: Path,
    rank: int | None,
    methods: tuple[str, ...],
    whole_matrices: bool,
    full: bool,
    form: str,
    out: Path,
    store: Path | None,
) -> None:
    """Export the adapter of RUN. For smaller devices, for peft, for llama.cpp, or merged with the base.

    \b
    Examples:
      fedpeft adapter export runs/a --rank 2 --method lora --out phones
      fedpeft adapter export runs/a --whole-matrices --out served
      fedpeft adapter export runs/a --full --out model
      fedpeft adapter export runs/a --format gguf --out llama
    """
    if form == "gguf" and (full or whole_matrices):
        raise click.UsageError("Expected --format gguf without --full and --whole-matrices, found both.")
    from fedpeft.api.kept import trained_model
    from fedpeft_server.run.run_view import read_run

    whole = trained_model(run, store=store)
    part = whole.for_class(rank=rank, methods=methods or None, store=store) if rank or methods else None
    if form == "gguf":
        matrices = (part or whole).export_gguf(out / "adapter.gguf")
        click.echo(f"{out / 'adapter.gguf'}: {matrices} matrices; load it with llama.cpp's --lora beside the base")
        return
    if full:
        written = (part or whole).export_merged(out)
        click.echo(
            f"{out}: {written.architecture}, loaded anew: logits within {written.max_difference:.1e} of the adapter's"
        )
        return
    convention = read_run(run).manifest.convention or ""
    (part or whole).export(out, whole_matrices=whole_matrices, part_of=whole if part else None, convention=convention)
    _tell(out)


@command.command()
@run_argument
@with_prediction_options
@store_option
def predict(
    *, run: Path, written_as: str | None, max_tokens: int, temperature: float, top_p: float, seed: int,
    store: Path | None, **what: Any,
) -> None:  # fmt: skip
    """Predict for TEXTS or the rows of a file. Prints one class or answer per text.

    A language model gets its prompts in the form it was trained on, e.g. through the base's chat template.

    \b
    Examples:
      fedpeft adapter predict latest "the flight was late" --probabilities
      fedpeft adapter predict latest --file notes.csv --map text=note > answers.jsonl
    """
    from fedpeft_client.inference import Sampling

    how = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    say_predictions(asked_as_trained(run, store, written_as), how, **what)


@command.command()
@run_argument
@with_how
@store_option
def chat(
    *, run: Path, written_as: str | None, max_tokens: int, temperature: float, top_p: float, seed: int,
    store: Path | None,
) -> None:  # fmt: skip
    """Chat with the language model of RUN. Questions from standard input, answers streamed."""
    from fedpeft.cli.asking import chat as converse
    from fedpeft_client.inference import Sampling

    how = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    converse(asked_as_trained(run, store, written_as), how)


@command.command("eval")
@run_argument
@with_evaluation_options
@store_option
def evaluate(
    run: Path, data: str, column_map: dict[str, str], generation: "Generation | None", store: Path | None, as_json: bool
) -> None:
    """Evaluate the adapter of RUN on other examples of its task.

    \b
    Example:
      fedpeft adapter eval latest --data notes.csv --map text=note,label=dx
    """
    from fedpeft.api.kept import trained_model
    from fedpeft.data import load_records

    model = trained_model(run, store=store)
    score = model.evaluate(load_records(data, column_map), generation)
    say_evaluation(str(run), model.metrics(score), score, unit=model.task.record.counted, as_json=as_json)


for part in (merge, hub, serve, harness):
    command.add_command(part)


def _tell(folder: Path) -> None:
    summary = summary_of(folder)
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

    summary = summary_of(folder)
    if summary["peft_lacks"]:
        raise ConfigInvalid("Expected an adapter that the PEFT files hold whole, found one that needs load_union.")
    place = store or default_store()
    trained = ArtifactStore(place).get(summary["base_digest"])
    return moved_by_the_original_weights(folder, trained, build(model, quantize="none", store=place))


def _gap(difference: float | None) -> str:
    return "" if difference is None else f" (logits within {difference:.1e} of the trained model)"
