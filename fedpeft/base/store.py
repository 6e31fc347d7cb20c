"""The store that keeps artifacts by content.

``STORE/sha256-<hex>/`` holds one artifact; its files never change. ``STORE/index/<key>`` remembers which
artifact a source and a scheme gave, so that building again costs one hash of the source. A folder is made
in a staging directory, synced and renamed to its digest: all of it, or nothing. Needs no torch.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from fedpeft.base.artifact import FOLDER, MANIFEST_FILE, BaseArtifact, open_artifact
from fedpeft.base.manifest import FORMAT
from fedpeft.clock import SystemClock
from fedpeft.errors import IntegrityFailed, Problem, ResourceMissing
from fedpeft.files import expanded, sync

__all__ = ["ArtifactStore", "default_store", "index_key", "staging_directory", "write_json"]

STAGING = ".staging-"  # prefix of what is being written
ABANDONED_S = 24 * 3600.0


def default_store() -> Path:
    """``$FEDPEFT_HOME/bases``, or ``~/.cache/fedpeft/bases``."""
    home = os.environ.get("FEDPEFT_HOME")
    return (expanded(home) if home else Path.home() / ".cache" / "fedpeft") / "bases"


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
        """Remove what no build finished within a day, what is broken, and what the index still promises but is gone.

        Args:
            keep: when given, every artifact whose digest is not in it goes too.

        Returns:
            Names of the removed folders.
        """
        abandoned = SystemClock().utc().timestamp() - ABANDONED_S  # a build may be writing right now
        staged = (path for path in self._children() if path.name.startswith(STAGING) and path.is_dir())
        removed = [path for path in staged if path.stat().st_mtime < abandoned]
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
        staged = index / f"{STAGING}{secrets.token_hex(8)}-{key}"
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


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """JSON for people and for hashing: sorted keys, two spaces, ASCII, one newline at the end."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="ascii")


@contextlib.contextmanager
def staging_directory(store: Path) -> Iterator[tuple[Path, Callable[[str], Path]]]:
    """A new directory in ``store`` and the function that commits it under a name; uncommitted, it vanishes.

    Committing syncs the files, makes them read-only and renames: a crash leaves a staging directory or
    the whole artifact. When the name exists already, the one that stands is kept.

    Raises:
        ResourceMissing: the store cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        staging = store / f"{STAGING}{secrets.token_hex(8)}"
        staging.mkdir()
    except OSError as error:
        raise ResourceMissing(
            f"Expected to write the base store {store}, found {error}; pass --store or set FEDPEFT_HOME."
        ) from error

    def commit(name: str) -> Path:
        target = store / name
        _sync_tree(staging)
        with contextlib.suppress(OSError):  # another process was first: same name, same bytes
            staging.rename(target)
        sync(store)
        return target

    try:
        yield staging, commit
    except OSError as error:
        raise ResourceMissing(
            f"Expected to write {staging}, found {error}; make room there or pass --store."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    """Make the files of a flat directory read-only and durable."""
    for path in directory.iterdir():
        path.chmod(0o444)
        sync(path)
    sync(directory)
