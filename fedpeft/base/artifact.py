"""Artifacts and the store that keeps them by content.

``STORE/sha256-<hex>/`` holds one artifact; its files never change. ``STORE/index/<key>`` remembers which
artifact a source and a scheme gave, so that building again costs one hash of the source. Needs no torch.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedpeft.base.manifest import CHUNK_BYTES, FORMAT, FileEntry, Manifest, parse_manifest
from fedpeft.errors import IntegrityFailed, Problem, ResourceMissing

__all__ = [
    "MANIFEST_FILE",
    "WEIGHTS_FILE",
    "ArtifactStore",
    "BaseArtifact",
    "default_store",
    "index_key",
    "open_artifact",
]

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"
FOLDER = re.compile(r"sha256-(?P<hex>[0-9a-f]{64})")
STAGING = ".staging-"  # prefix of what is being written

TaskName = Literal["classify", "causal-lm"]


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


def default_store() -> Path:
    """``$FEDPEFT_HOME/bases``, or ``~/.cache/fedpeft/bases``."""
    home = os.environ.get("FEDPEFT_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "fedpeft") / "bases"


def index_key(origin: str, files: Mapping[str, str], quantize: str) -> str:
    """One key for one source (by content), scheme and format version."""
    content = json.dumps([FORMAT, origin, dict(files), quantize], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class ArtifactStore:
    """Artifacts by digest, in one directory that several processes may use at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, digest: str) -> BaseArtifact | None:
        """The artifact of that digest, or ``None``. Checks the manifest, not the weights (see ``verify``).

        Raises:
            IntegrityFailed: the folder is there, but its manifest is not what the digest says.
        """
        folder = self.folder(digest)
        return open_artifact(folder) if folder.is_dir() else None

    def get(self, digest: str) -> BaseArtifact:
        """As ``find``.

        Raises:
            ResourceMissing: the store has no such artifact.
        """
        if (artifact := self.find(digest)) is None:
            raise ResourceMissing(
                f"Expected the base {digest} in {self.path}, found none; build it with `fedpeft base build`."
            )
        return artifact

    def folder(self, digest: str) -> Path:
        """Where the artifact of that digest lies or would lie."""
        return self.path / digest.replace(":", "-", 1)

    def ls(self) -> tuple[BaseArtifact, ...]:
        """Every artifact, by digest. A folder whose manifest is broken is left out: ``verify`` names it."""
        artifacts = []
        for folder in self._folders():
            with contextlib.suppress(IntegrityFailed):
                artifacts.append(open_artifact(folder))
        return tuple(artifacts)

    def verify(self, digest: str | None = None) -> tuple[BaseArtifact, ...]:
        """Check every byte of one artifact, or of all.

        Raises:
            IntegrityFailed: names each difference: artifact, file, chunk.
            ResourceMissing: no such artifact.
        """
        if digest is not None:
            (artifact := self.get(digest)).verify()
            return (artifact,)
        sound, problems = [], []
        for folder in self._folders():
            try:
                (artifact := open_artifact(folder)).verify()
                sound.append(artifact)
            except IntegrityFailed as error:
                broken = error.problems or (
                    Problem(where=MANIFEST_FILE, expected=folder.name, found="another manifest, or none"),
                )
                problems += [
                    Problem(where=f"{folder.name}/{p.where}", expected=p.expected, found=p.found) for p in broken
                ]
        if problems:
            raise IntegrityFailed(
                f"Expected sound artifacts in {self.path}, found {len(problems)} difference(s); "
                "`fedpeft base gc` removes them.",
                problems=problems,
            )
        return tuple(sound)

    def gc(self, keep: Collection[str] | None = None) -> tuple[str, ...]:
        """Remove what no build finished, what is broken, and what the index still promises but is gone.

        Args:
            keep: when given, every artifact whose digest is not in it goes too.

        Returns:
            Names of the removed folders.
        """
        removed = [path for path in self._children() if path.name.startswith(STAGING)]
        for folder in self._folders():
            try:
                artifact = open_artifact(folder)
                if artifact.problems() or (keep is not None and artifact.digest not in keep):
                    removed.append(folder)
            except IntegrityFailed:
                removed.append(folder)
        for folder in removed:
            shutil.rmtree(folder)
        index = self.path / "index"
        for entry in index.iterdir() if index.is_dir() else ():
            if not self.folder(entry.read_text(encoding="ascii")).is_dir():
                entry.unlink()
        return tuple(folder.name for folder in removed)

    def recall(self, key: str) -> BaseArtifact | None:
        """What ``remember`` noted under ``key``, if it is still here and whole in size."""
        try:
            artifact = self.find((self.path / "index" / key).read_text(encoding="ascii"))
        except (OSError, IntegrityFailed):
            return None
        if artifact is None or any(
            not _has_size(artifact.path / file.name, file.size_bytes) for file in artifact.manifest.files
        ):
            return None
        return artifact

    def remember(self, key: str, digest: str) -> None:
        """Note that the source and scheme of ``key`` give ``digest``."""
        index = self.path / "index"
        index.mkdir(parents=True, exist_ok=True)
        staged = index / f"{STAGING}{os.getpid()}-{key}"
        staged.write_text(digest, encoding="ascii")
        staged.replace(index / key)

    def drop_if_broken(self, digest: str) -> None:
        """Make room for an artifact that is about to be written again: a broken copy must not outlive it."""
        folder = self.folder(digest)
        try:
            broken = folder.is_dir() and bool(open_artifact(folder).problems())
        except IntegrityFailed:
            broken = True
        if broken:
            shutil.rmtree(folder)

    def _children(self) -> list[Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []

    def _folders(self) -> list[Path]:
        return [path for path in self._children() if FOLDER.fullmatch(path.name)]


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes
