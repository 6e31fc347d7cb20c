"""manifest.json: what an artifact is made of, and the digest that names it.

The digest of an artifact is the SHA-256 of its canonical manifest, and the manifest holds the SHA-256 of
every file and of every 8 MiB chunk of every file: whoever trusts the digest can check each chunk as it
arrives. A manifest may come from the network, so it is parsed strictly: unknown keys, paths that are not
plain names, and sizes that do not fit their chunks are refused. Holds no local path, clock or version of a
library: the same source and scheme give the same digest everywhere.
"""

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedpeft.errors import IntegrityFailed
from fedpeft.tasks.form import Form

__all__ = [
    "CHUNK_BYTES",
    "FORMAT",
    "FileEntry",
    "Manifest",
    "SourceEntry",
    "TaskEntry",
    "TensorEntry",
    "digest_of",
    "parse_manifest",
]

FORMAT: Literal["fedpeft-base/1"] = "fedpeft-base/1"
CHUNK_BYTES = 8 * 1024 * 1024

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]


class Entry(BaseModel):
    """Frozen, strict, closed."""

    model_config = ConfigDict(frozen=True, strict=False, extra="forbid", protected_namespaces=())


class FileEntry(Entry):
    """One file of the artifact."""

    name: PlainName
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    chunks: tuple[Sha256, ...] = Field(description="SHA-256 of each 8 MiB chunk, in order; the last may be shorter.")

    @model_validator(mode="after")
    def _chunks_cover_the_file(self) -> "FileEntry":
        if len(self.chunks) != (expected := -(-self.size_bytes // CHUNK_BYTES)):
            raise ValueError(f"expected {expected} chunks for {self.size_bytes} bytes, found {len(self.chunks)}")
        return self


class SourceEntry(Entry):
    """What the artifact was made from."""

    origin: str = Field(
        max_length=300, description="Package and version, Hub id and revision, or the kind of local source."
    )
    digest: Sha256
    files: dict[str, Sha256]


class TensorEntry(Entry):
    """How one weight is stored: its parts are ``NAME/PART`` in model.safetensors (see ``quantize``)."""

    encoding: Literal["plain", "int8", "int8-g32", "nf4", "int4-g32"]
    shape: tuple[Annotated[int, Field(ge=0)], ...]


class TaskEntry(Entry):
    """A task that the artifact can be loaded for."""

    architecture: str
    head: tuple[str, ...] = Field(description="Parameters that the source does not have: initialised from head_seed.")


class Manifest(Entry):
    """Everything about an artifact but its bytes."""

    format: Literal["fedpeft-base/1"]
    source: SourceEntry
    quantize: Literal["none", "int8", "nf4", "int4-g32"]
    model_type: str
    parameters: int = Field(ge=0)
    tasks: dict[Form, TaskEntry]
    tensors: dict[str, TensorEntry]
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _files_are_distinct(self) -> "Manifest":
        names = [file.name for file in self.files]
        if len(set(names)) != len(names) or "manifest.json" in names:
            raise ValueError(f"expected distinct names other than manifest.json, found {names}")
        return self

    def canonical(self) -> bytes:
        """The one encoding that is hashed and stored: sorted keys, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode("ascii")


def digest_of(canonical: bytes) -> str:
    """The name of the artifact with this manifest: ``sha256:<64 hex digits>``."""
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def parse_manifest(content: bytes, digest: str) -> Manifest:
    """Read a manifest and check that it is the one that ``digest`` names.

    Raises:
        IntegrityFailed: other bytes, or bytes that are not a manifest of this format.
    """
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or (found := digest_of(content)) != digest:
        raise IntegrityFailed(
            f"Expected the manifest of {digest}, found {digest_of(content)}; build or fetch the base again."
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise IntegrityFailed(
            f"Expected a {FORMAT} manifest in {found}, found {error}; build or fetch the base again."
        ) from error
    if manifest.canonical() != content:
        raise IntegrityFailed(
            f"Expected a canonical manifest in {found}, found another encoding; build the base again."
        )
    return manifest
