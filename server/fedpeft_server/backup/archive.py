"""The file of a backup: a tar archive whose last member names the digest of every other one.

Reading trusts nothing: plain files with plain names, each once, exactly those that the record names.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fedpeft import bounded_json
from fedpeft.errors import IntegrityFailed, ResourceMissing
from fedpeft.files import PRIVATE
from fedpeft_server.home import SCHEMA

__all__ = ["Archive", "Backup", "unpacked"]

FORMAT, RECORD = 1, "backup.json"
PIECE = 1 << 20
_LIMITS = bounded_json.JsonLimits(max_bytes=2**28)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What a backup says of itself.

    Args:
        at: when, UTC, ISO 8601.
        fedpeft: the version that made it.
        schema: of the home.
        running: whether a coordinator held the home meanwhile.
        audit_head: digest of the last audit record in it.
        files: digest of each member.
    """

    at: str
    fedpeft: str
    schema: int
    running: bool
    audit_head: str
    files: Mapping[str, str]

    def to_json(self) -> str:
        """The last member."""
        return json.dumps(
            {
                "format": FORMAT, "at": self.at, "fedpeft": self.fedpeft, "schema": self.schema,
                "running": self.running, "audit_head": self.audit_head, "files": dict(self.files),
            },
            indent=1,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: bytes) -> "Backup":
        """The inverse of ``to_json``.

        Raises:
            IntegrityFailed: it is no such text, or of a later version.
        """
        try:
            found = bounded_json.loads(text, _LIMITS)
        except ValueError as error:
            raise IntegrityFailed(f"Expected the record of a backup, found {error}.") from error
        match found:
            case {
                "format": 1, "at": str(at), "fedpeft": str(version), "schema": int(schema), "running": bool(running),
                "audit_head": str(head), "files": dict(files),
            }:  # fmt: skip
                names = {name: digest for name, digest in files.items() if isinstance(digest, str)}
                return cls(
                    at=at, fedpeft=version, schema=schema, running=running, audit_head=head, files=names
                )  # fmt: skip
            case {"format": int(number)} if number > FORMAT:
                raise IntegrityFailed(f"Expected a backup of format {FORMAT}, found {number}; use a later fedpeft.")
        raise IntegrityFailed("Expected the record of a backup, found another.")


class Archive:
    """A tar file that knows the digest of each of its members."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed by ``end``
        self.digests: dict[str, str] = {}

    def add(self, name: str, path: Path) -> None:
        """A file that does not change meanwhile."""
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            size = source.tell()
            source.seek(0)
            self._tar.addfile(_entry(name, size), source)
        self.digests[name] = digest

    def add_bytes(self, name: str, content: bytes) -> None:
        """A file by its content."""
        self._tar.addfile(_entry(name, len(content)), io.BytesIO(content))
        self.digests[name] = hashlib.sha256(content).hexdigest()

    def end(self, record: bytes) -> None:
        """The record, and the end."""
        self._tar.addfile(_entry(RECORD, len(record)), io.BytesIO(record))
        self._tar.close()


def unpacked(archive: Path, staging: Path) -> Backup:
    """The members of a backup as files, each as its record says."""
    record, digests = b"", {}
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for entry in tar:
                parts = PurePosixPath(entry.name).parts
                if not entry.isreg() or not parts or ".." in parts or entry.name.startswith("/") or "\\" in entry.name:
                    raise IntegrityFailed(f"Expected plain files in {archive}, found {entry.name!r:.100}.")
                content = tar.extractfile(entry)
                if content is None or entry.name in digests:
                    raise IntegrityFailed(f"Expected each file once in {archive}, found {entry.name!r:.100} again.")
                if entry.name == RECORD:
                    record = content.read(_LIMITS.max_bytes + 1)
                    continue
                digests[entry.name] = _written(content, staging.joinpath(*parts))
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityFailed(
            f"Expected a backup in {archive}, found {error}; the file is not a backup, or is truncated."
        ) from error
    except OSError as error:
        raise ResourceMissing(f"Expected to unpack {archive}, found: {error}.") from error
    if not record:
        raise IntegrityFailed(
            f"Expected {RECORD} at the end of {archive}, found none: the file is not a backup, or is truncated."
        )
    found = Backup.from_json(record)
    if found.schema > SCHEMA:
        raise IntegrityFailed(
            f"Expected a backup of schema {SCHEMA} or before, found {found.schema}; restore it with fedpeft "
            f"{found.fedpeft} or later."
        )
    differ = sorted(name for name in found.files.keys() | digests.keys() if found.files.get(name) != digests.get(name))
    if differ:
        raise IntegrityFailed(f"Expected the files that {RECORD} names, found others: {', '.join(differ[:3])}.")
    return found


def _written(source: IO[bytes], path: Path) -> str:
    """Copies a member into a file; its SHA-256, hex."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE), "wb") as file:
        while piece := source.read(PIECE):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, PRIVATE
    return entry
