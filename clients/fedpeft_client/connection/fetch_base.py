"""Fetching a base: manifest, then the bytes of its files by offset, each 8 MiB chunk checked before it counts.

The manifest's digest is the base's name, and the manifest holds the digest of every chunk, so nothing that the
coordinator or the network changes gets in. What was fetched is kept in a staging directory inside the cache and
checked again when a fetch goes on; the base gets its name in one rename at the end. Processes that share a cache
take turns: the second one finds the base. Nothing is written outside the staging directory, and no link is followed.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedpeft.base.artifact import MANIFEST_FILE, BaseArtifact
from fedpeft.base.manifest import FileEntry, Manifest, parse_manifest
from fedpeft.base.store import STAGING, ArtifactStore
from fedpeft.errors import IntegrityFailed, ResourceMissing
from fedpeft.files import sync, write_file
from fedpeft_client.connection.base_cache import BaseCache
from fedpeft_client.connection.checked_file import ChunkWriter, Partial
from fedpeft_client.connection.grpc_client import Link, Unreachable

__all__ = ["FetchProgress", "fetch_base"]

_BAD_MAX = 3
"""A chunk that is wrong so often is wrong at its source."""
_TRIES = 6
"""Connections without a single new byte before giving up."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LOCK_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far a fetch is.

    Args:
        done_bytes: of the base, here and checked or being checked.
        total_bytes: of the base.
        received_bytes: over the network by this call, what was wrong or resent included.
        waiting: whether another process is fetching the same base.
    """

    done_bytes: int
    total_bytes: int
    received_bytes: int
    waiting: bool = False


def fetch_base(
    link: Link,
    digest: str,
    cache: Path,
    *,
    quota_bytes: int | None = None,
    progress: Callable[[FetchProgress], None] = lambda _: None,
    pause: Callable[[float], object],
) -> BaseArtifact:
    """The base of that digest, fetched if the cache does not have it.

    Args:
        link: to the coordinator, as an enrolled device.
        digest: ``sha256:<hex>`` of its manifest.
        cache: an artifact store, perhaps shared.
        quota_bytes: how much the cache may hold in all, by removing what was used least recently (see
            ``fedpeft_client.connection.base_cache``); None: as the disk allows.
        progress: told after every piece.
        pause: sleeps, between two connections or looks at a lock.

    Raises:
        IntegrityFailed: what came is not that base, or the cache holds a link where files belong.
        ResourceMissing: disk or quota do not suffice (found out before the download), or there is no such base.
        Unreachable: the connection broke again and again; calling again goes on where it stopped.
        NotEnrolled: the coordinator does not serve this device.
    """
    if not _DIGEST.fullmatch(digest):
        raise IntegrityFailed(
            f"Expected a digest sha256:<64 hex digits>, found {digest[:80]!r}; see `fedpeft base ls`."
        )
    if (found := _whole(cache, digest)) is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with _turn(cache, digest, progress, pause):
        if (found := _whole(cache, digest)) is not None:  # the other process brought it
            return found
        content = link.manifest(digest)
        fetch = _Fetch(link, digest, parse_manifest(content, digest), cache, progress, pause)
        fetch.check_space(quota_bytes)
        return fetch.run(content)


class _Fetch:
    """One download into one staging directory."""

    def __init__(
        self,
        link: Link,
        digest: str,
        manifest: Manifest,
        cache: Path,
        progress: Callable[[FetchProgress], None],
        pause: Callable[[float], object],
    ) -> None:
        self._link, self._digest, self._manifest, self._cache = link, digest, manifest, cache
        self._progress, self._pause = progress, pause
        self._staging = cache / f"{STAGING}fetch-{digest.removeprefix('sha256:')}"
        self._done = self._received = 0
        self._total = sum(file.size_bytes for file in manifest.files)

    def check_space(self, quota_bytes: int | None) -> None:
        """Before the first byte: is there room?"""
        here = sum(path.lstat().st_size for path in self._staging.iterdir()) if self._staging.is_dir() else 0
        BaseCache(self._cache, quota_bytes).make_room(self._digest, self._total, here)

    def run(self, manifest: bytes) -> BaseArtifact:
        """Fetches what is missing, then gives the base its name."""
        self._staging.mkdir(exist_ok=True, mode=0o700)
        folder = self._own_folder()
        try:
            for entry in self._manifest.files:
                self._fetch_file(entry, folder)
            if not os.path.samestat(os.fstat(folder), self._staging.lstat()):
                raise IntegrityFailed(
                    f"Expected {self._staging} to stay where it is, found another in its place; see who else writes "
                    f"to {self._cache}."
                )
            write_file(self._staging / MANIFEST_FILE, manifest)
            names = {entry.name for entry in self._manifest.files} | {MANIFEST_FILE}
            for path in self._staging.iterdir():
                if path.name not in names:
                    path.unlink()  # of an older attempt
                else:
                    path.chmod(0o444)
                    sync(path)
            sync(self._staging)
            target = ArtifactStore(self._cache).folder(self._digest)
            self._staging.chmod(0o755)
            self._staging.rename(target)
            sync(self._cache)
        except OSError as error:
            raise ResourceMissing(
                f"Expected to write {self._staging}, found {error.strerror}; make room, then run it again: "
                "it goes on where it stopped."
            ) from error
        finally:
            os.close(folder)
        return ArtifactStore(self._cache).get(self._digest)

    def _own_folder(self) -> int:
        """The staging directory, opened: what is put in its place later is not written to."""
        try:
            folder = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise IntegrityFailed(f"Expected a directory {self._staging}, found something else; remove it.") from error
        if (owner := os.fstat(folder).st_uid) != os.geteuid():
            os.close(folder)
            raise IntegrityFailed(
                f"Expected {self._staging} to be this user's own, found it user {owner}'s, who can change it; "
                "remove it."
            )
        return folder

    def _fetch_file(self, entry: FileEntry, folder: int) -> None:
        # Safe: the manifest was parsed, so the name is a plain one, and no link is followed or written through.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        linked = IntegrityFailed(f"Expected a file {entry.name} in {self._staging}, found a link; remove it.")
        try:
            descriptor = os.open(entry.name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise linked from error
            raise
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:  # by another name it is somebody else's file
            os.close(descriptor)
            raise linked
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            partial = Partial(entry, file.fileno())
            self._done += partial.size
            bad: dict[int, int] = {}
            silent = 0
            while partial.size < entry.size_bytes:
                before = self._received
                wrong = self._stream_into(partial, silent)
                silent = 0 if self._received > before else silent + 1
                if wrong is not None:
                    bad[wrong] = bad.get(wrong, 0) + 1
                    if bad[wrong] >= _BAD_MAX:
                        raise IntegrityFailed(
                            f"Expected chunk {wrong} of {entry.name} of {self._digest}, found other bytes "
                            f"{_BAD_MAX} times; the coordinator's copy is damaged: `fedpeft base verify` there."
                        )

    def _stream_into(self, partial: Partial, silent: int) -> int | None:
        """One connection's worth of a file; the number of a chunk that was wrong, if one was."""
        before = self._done - partial.size
        writer = ChunkWriter(partial)
        try:
            with writer:
                for piece in self._link.chunks(self._digest, partial.entry.name, partial.size):
                    self._received += len(piece)
                    writer.put(piece)
                    self._tell(before + partial.size)
                    if writer.wrong is not None:
                        break
            if writer.wrong is None and partial.size < partial.entry.size_bytes:
                raise Unreachable(f"Expected all of {partial.entry.name}, found the stream ended early; try again.")
        except Unreachable:
            if silent + 1 >= _TRIES:
                raise
            self._pause(min(8.0, 0.25 * 2**silent))
        self._tell(before + partial.size)
        return writer.wrong

    def _tell(self, done: int) -> None:
        self._done = done
        self._progress(FetchProgress(done_bytes=done, total_bytes=self._total, received_bytes=self._received))


def _whole(cache: Path, digest: str) -> BaseArtifact | None:
    """The base if it is in the cache with every file in its size."""
    artifact = ArtifactStore(cache).find(digest)
    if artifact is None:
        return None
    for entry in artifact.manifest.files:
        path = artifact.path / entry.name
        if not path.is_file() or path.is_symlink() or path.stat().st_size != entry.size_bytes:
            raise IntegrityFailed(
                f"Expected {entry.name} of {digest} whole in {cache}, found it changed; run `fedpeft base gc`."
            )
    return artifact


@contextmanager
def _turn(
    cache: Path, digest: str, progress: Callable[[FetchProgress], None], pause: Callable[[float], object]
) -> Iterator[None]:
    """Holds the lock of one base in a shared cache; the operating system frees it when its holder dies."""
    name = cache / f"{STAGING}lock-{digest.removeprefix('sha256:')}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(FetchProgress(done_bytes=0, total_bytes=0, received_bytes=0, waiting=True))
                pause(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
