"""Building an artifact: resolve, hash, and only when the store does not have it yet, quantize and write.

The publisher does this once; devices only ever fetch and load. Deterministic: one source, scheme and format
version give one digest. Building what is built costs one SHA-256 of the source and loads no torch.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedpeft.base.artifact import MANIFEST_FILE, WEIGHTS_FILE, BaseArtifact, describe_file, open_artifact
from fedpeft.base.facts import Facts, write_facts
from fedpeft.base.manifest import FORMAT, Manifest, SourceEntry, TensorEntry, digest_of
from fedpeft.base.source import CONFIG_FILE, ModelSource, hash_file, resolve
from fedpeft.base.store import ArtifactStore, index_key, staging_directory, write_json
from fedpeft.errors import ConfigInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.base.plan import PlannedTensor
    from fedpeft.base.quantize import PartSpec

__all__ = ["SCHEMES", "build"]

SCHEMES = ("none", "int8", "nf4", "int4-g32")
Scheme = Literal["none", "int8", "nf4", "int4-g32"]
Progress = Callable[[str, float], None]


def build(model: str, *, quantize: str, store: Path, progress: Progress | None = None) -> BaseArtifact:
    """The artifact of ``model`` under ``quantize``: from the store, or made now.

    Args:
        model: see ``resolve``. ``sha256:<hex>`` names an artifact as it is; ``quantize`` does not apply to it.
        quantize: ``none``, ``int8``, ``nf4`` or ``int4-g32`` (see ``fedpeft.base.quantize``).
        store: directory of the artifact store.
        progress: told what is being done and the fraction done of the whole, 0 to 1.

    Raises:
        ConfigInvalid: no such model, a refused one, or an architecture that is not supported.
        ResourceMissing: a missing package, artifact, network or disk.
    """
    report = progress or (lambda _stage, _fraction: None)
    if (scheme := _scheme(quantize)) is None:
        raise ConfigInvalid(f"Expected quantize={quantize!r} to be one of {', '.join(SCHEMES)}; correct base.quantize.")
    source = resolve(model)
    artifacts = ArtifactStore(store)
    if source.kind == "artifact":
        return artifacts.get(source.origin)
    report("hash", 0.0)
    files = {path.name: hash_file(path) for path in source.files}
    key = index_key(source.origin, files, scheme)
    if (known := artifacts.recall(key)) is not None:
        report("found", 1.0)
        return known
    artifact = _build(source, files, scheme, artifacts, report)
    artifacts.remember(key, artifact.digest)
    report("done", 1.0)
    return artifact


def _scheme(quantize: str) -> Scheme | None:
    schemes: tuple[Scheme, ...] = ("none", "int8", "nf4", "int4-g32")
    return next((scheme for scheme in schemes if scheme == quantize), None)


def _build(
    source: ModelSource, files: dict[str, str], scheme: Scheme, store: ArtifactStore, report: Progress
) -> BaseArtifact:
    from fedpeft.base.checkpoint import open_checkpoint
    from fedpeft.base.plan import plan
    from fedpeft.base.quantize import choose_encoding, parts_of
    from fedpeft.base.tokenizer import check_tokenizer, write_tokenizer
    from fedpeft.base.writer import write_safetensors

    report("read", 0.05)
    checkpoint = open_checkpoint(source)
    needed = plan(checkpoint.config, checkpoint.tensors)
    entries: dict[str, TensorEntry] = {}
    specs: list[PartSpec] = []
    for tensor in needed.tensors:
        encoding = choose_encoding(scheme, tensor.role, tensor.rows.shape)
        entries[tensor.name] = TensorEntry(encoding=encoding, shape=tensor.rows.shape)
        specs += [part.named(tensor.name) for part in parts_of(encoding, tensor.rows.shape, tensor.rows.dtype)]
    with staging_directory(store.path) as (staging, commit):
        report("tokenizer", 0.1)
        tokenizer = check_tokenizer(write_tokenizer(source, staging), needed.facts.embedding_rows)
        config = dict(needed.config)
        if config.get("pad_token_id") is None:
            config["pad_token_id"] = (
                tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            )
        write_json(staging / CONFIG_FILE, config)
        write_safetensors(staging / WEIGHTS_FILE, specs, _packed(needed.tensors, entries, report))
        canonical = Manifest(
            format=FORMAT,
            source=SourceEntry(origin=source.origin, digest=_content_digest(files), files=files),
            quantize=scheme,
            model_type=str(config["model_type"]),
            parameters=sum(math.prod(entry.shape) for entry in entries.values()),
            tasks=dict(needed.tasks),
            tensors=entries,
            files=tuple(describe_file(path) for path in sorted(staging.iterdir())),
        ).canonical()
        (staging / MANIFEST_FILE).write_bytes(canonical)
        facts = Facts(tokenizer=tokenizer, model=needed.facts, left_out=needed.left_out, notes=needed.notes)
        write_facts(facts, staging)
        store.drop_if_broken(digest_of(canonical))
        return open_artifact(commit(store.folder(digest_of(canonical)).name))


def _packed(
    tensors: "Sequence[PlannedTensor]", entries: dict[str, TensorEntry], report: Progress
) -> Iterator[dict[str, "Tensor"]]:
    from fedpeft.base.quantize import quantize_rows

    total, done = sum(math.prod(entry.shape) for entry in entries.values()), 0
    for tensor in tensors:
        entry = entries[tensor.name]
        try:
            for pieces in quantize_rows(tensor.rows, entry.encoding):
                yield {f"{tensor.name}/{part}": piece for part, piece in pieces.items()}
        except ConfigInvalid as error:
            raise ConfigInvalid(f"{', '.join(tensor.source_names)}: {error}") from error
        done += math.prod(entry.shape)
        report("quantize", 0.2 + 0.75 * done / max(total, 1))


def _content_digest(files: dict[str, str]) -> str:
    """One digest for the source's files, whatever they were fetched from."""
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
