"""One artifact on disk: an immutable folder that is what its manifest says, and the check that it is.

Needs no torch.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fedpeft.base.manifest import CHUNK_BYTES, FileEntry, Manifest, parse_manifest
from fedpeft.errors import IntegrityFailed, Problem
from fedpeft.tasks.form import Form

__all__ = ["FOLDER", "MANIFEST_FILE", "WEIGHTS_FILE", "BaseArtifact", "TaskName", "describe_file", "open_artifact"]

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"
FOLDER = re.compile(r"sha256-(?P<hex>[0-9a-f]{64})")

TaskName = Form
"""What the manifest lists: a form of the base, which several tasks may share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseArtifact:
    """One base model on this disk, named by its digest.

    Args:
        path: its folder.
        digest: ``sha256:<hex>`` of the manifest's bytes.
        manifest: what the folder holds.
    """

    path: Path
    digest: str
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        """All files together, manifest included: what a device downloads."""
        return sum(file.size_bytes for file in self.manifest.files) + (self.path / MANIFEST_FILE).stat().st_size

    @property
    def model_type(self) -> str:
        """The architecture family, e.g. ``bert``."""
        return self.manifest.model_type

    def head_parameters(self, task: TaskName) -> tuple[str, ...]:
        """Names of the parameters that ``load_model`` initialises from the head seed."""
        return self.manifest.tasks[task].head

    def problems(self) -> list[Problem]:
        """Read every byte and name what differs from the manifest: file, chunk and offsets."""
        return [problem for file in self.manifest.files for problem in self._file_problems(file)]

    def verify(self) -> None:
        """Check every byte.

        Raises:
            IntegrityFailed: lists every missing file, wrong size and wrong chunk.
        """
        if problems := self.problems():
            raise IntegrityFailed(
                f"Expected the files of {self.digest} in {self.path}, found {len(problems)} difference(s); "
                "delete the folder and build or fetch the base again.",
                problems=problems,
            )

    def _file_problems(self, file: FileEntry) -> list[Problem]:
        path = self.path / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.size_bytes:
            found = "no such file" if size is None else f"{size} bytes"
            return [Problem(where=file.name, expected=f"{file.size_bytes} bytes", found=found)]
        problems = []
        with path.open("rb") as content:
            for number, expected in enumerate(file.chunks):
                chunk = content.read(CHUNK_BYTES)
                if (found := hashlib.sha256(chunk).hexdigest()) != expected:
                    start = number * CHUNK_BYTES
                    where = f"{file.name} chunk {number} (bytes {start} to {start + len(chunk)})"
                    problems.append(Problem(where=where, expected=f"sha256 {expected}", found=found))
        return problems


def open_artifact(path: Path) -> BaseArtifact:
    """The artifact in a folder named ``sha256-<hex>``; the manifest is checked against the name.

    Raises:
        IntegrityFailed: the manifest is missing or is another one.
    """
    if not (found := FOLDER.fullmatch(path.name)):
        raise IntegrityFailed(
            f"Expected a folder named sha256-<64 hex digits>, found {path.name}; give the store's own."
        )
    try:
        content = (path / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise IntegrityFailed(
            f"Expected {path / MANIFEST_FILE}, found {error}; build or fetch the base again."
        ) from error
    digest = f"sha256:{found['hex']}"
    return BaseArtifact(path=path, digest=digest, manifest=parse_manifest(content, digest))


def describe_file(path: Path) -> FileEntry:
    """Size and digests of a file, read once."""
    whole, chunks, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
    return FileEntry(name=path.name, size_bytes=size, sha256=whole.hexdigest(), chunks=tuple(chunks))
