"""The bases that a coordinator hands out: files of its artifact store, by digest, name and offset, and nothing else."""

import logging
import os
import re
from pathlib import Path
from typing import BinaryIO

from fedpeft.base.artifact import MANIFEST_FILE, BaseArtifact
from fedpeft.base.store import ArtifactStore
from fedpeft.base.verified import verified
from fedpeft.errors import IntegrityFailed

__all__ = ["BaseFiles", "open_at"]

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BaseFiles:
    """Read-only view of an artifact store: hands out what is as its digest says, nothing else. Thread-safe.

    Args:
        path: the store.
    """

    def __init__(self, path: Path) -> None:
        self._store = ArtifactStore(path)
        self._opened: dict[str, BaseArtifact] = {}

    def manifest(self, digest: str) -> bytes | None:
        """The manifest's bytes; None when there is no such base, or it is not what its name says."""
        artifact = self._find(digest)
        return (artifact.path / MANIFEST_FILE).read_bytes() if artifact else None

    def open(self, digest: str, file: str, offset: int) -> BinaryIO | None:
        """A file that the manifest names, from an offset on; None when there is none, or the offset is behind it."""
        artifact = self._find(digest)
        entry = next((entry for entry in artifact.manifest.files if entry.name == file), None) if artifact else None
        if artifact is None or entry is None or offset > entry.size_bytes:
            return None
        return open_at(artifact.path / file, offset)  # the names themselves lead nowhere else (see ``PlainName``)

    def _find(self, digest: str) -> BaseArtifact | None:
        try:
            artifact = self._opened.get(digest)
            if artifact is None:
                artifact = self._store.find(digest) if _DIGEST.fullmatch(digest) else None
            if artifact is None:
                return None
            self._opened[digest] = verified(artifact)
        except IntegrityFailed as error:
            self._opened.pop(digest, None)
            _log.error("the base %s is not handed out: %s", digest, error)
            return None
        return artifact


def open_at(path: Path, offset: int) -> BinaryIO | None:
    """A file to hand out, from an offset on; None if it cannot be opened, or is a link, which may lead elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    stream = os.fdopen(descriptor, "rb")
    stream.seek(offset)
    return stream
