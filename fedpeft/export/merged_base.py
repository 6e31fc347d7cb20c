"""QA-LoRA's promise kept: the adapter in the quantized base, as another base of the store, nothing quantized anew.

The adapter gives all weights of one group of a row the same change, which an ``int4-g32`` weight holds in that group's
minimum (``fedpeft.methods.qalora``). So the new base has the old one's codes and scales to the bit, other minima, and
no cost at use. What is lost is the rounding of a minimum to float16.
"""

import hashlib
import shutil
from pathlib import Path

from fedpeft.base import ArtifactStore, BaseArtifact
from fedpeft.base.artifact import MANIFEST_FILE, WEIGHTS_FILE, describe_file, open_artifact
from fedpeft.base.facts import facts_of, write_facts
from fedpeft.base.load import packed_weights
from fedpeft.base.manifest import Manifest, SourceEntry, digest_of
from fedpeft.base.quantize import PartSpec
from fedpeft.base.residency import PackedWeight
from fedpeft.base.store import staging_directory
from fedpeft.base.writer import write_safetensors
from fedpeft.errors import ConfigInvalid
from fedpeft.grafting.graft import grafts_of
from fedpeft.ids import BlockId
from fedpeft.methods.qalora import QALORA, QaLoraPart, merge
from fedpeft.methods.union import UnionAdapter

__all__ = ["merge_into_base"]


def merge_into_base(union: UnionAdapter, artifact: BaseArtifact, store: Path) -> BaseArtifact:
    """Write ``artifact`` with the adapter in its weights to the store.

    Args:
        union: the trained adapter, on ``artifact``; nothing but QA-LoRA.
        artifact: stored as ``int4-g32``.
        store: the directory of the artifact store; the new base has a digest of its own there.

    Raises:
        ConfigInvalid: the adapter has other blocks, or the base stores a matrix in another way.
        ResourceMissing: the store cannot be written.
    """
    others = sorted({block.method for block in union.spec.blocks} - {QALORA})
    if others:
        raise ConfigInvalid(
            f"Expected an adapter of qalora alone, found {', '.join(others)} as well; a base holds no such block: "
            "`fedpeft adapter export --full` writes a model that does."
        )
    weights = packed_weights(artifact)
    for path, part in grafts_of(union.model, QaLoraPart).items():
        name = f"{path}.weight"
        if name not in weights:
            raise ConfigInvalid(
                f"Expected {name} as a weight of its own in the base, found it fused; export with --full."
            )
        weights[name] = merge(part, weights[name])
    return _written(weights, artifact, union.state().digests, store)


def _written(
    weights: dict[str, PackedWeight], artifact: BaseArtifact, blocks: dict[BlockId, str], store: Path
) -> BaseArtifact:
    pieces = {f"{name}/{part}": value for name, packed in weights.items() for part, value in packed.parts.items()}
    specs = [PartSpec(name, value.dtype, tuple(value.shape)) for name, value in pieces.items()]
    old, artifacts = artifact.manifest, ArtifactStore(store)
    with staging_directory(store) as (staging, commit):
        for file in old.files:
            if file.name != WEIGHTS_FILE:
                shutil.copyfile(artifact.path / file.name, staging / file.name)
        write_safetensors(staging / WEIGHTS_FILE, specs, ({name: value} for name, value in pieces.items()))
        source = hashlib.sha256(artifact.digest.encode())
        for name in sorted(blocks):
            source.update(f"{name} {blocks[name]}".encode())
        canonical = Manifest.model_validate(
            old.model_dump()
            | {
                "source": SourceEntry(
                    origin=f"{old.source.origin} with a trained adapter"[:300],
                    digest=source.hexdigest(),
                    files=old.source.files,
                ),
                "files": tuple(describe_file(path) for path in sorted(staging.iterdir())),
            }
        ).canonical()
        (staging / MANIFEST_FILE).write_bytes(canonical)
        write_facts(facts_of(artifact), staging)
        artifacts.drop_if_broken(digest_of(canonical))
        return open_artifact(commit(artifacts.folder(digest_of(canonical)).name))
