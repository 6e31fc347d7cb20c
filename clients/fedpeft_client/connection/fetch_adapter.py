"""Bringing a run's adapter from the coordinator to a device that helped to train it: whole and checked, or not."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from fedpeft.deployment.messages import AdapterEntry, AdapterFile
from fedpeft.errors import IntegrityFailed, ResourceMissing
from fedpeft.files import sync
from fedpeft_client.connection.grpc_client import Link

__all__ = ["fetch_adapter", "listed_adapters"]

MOST_BYTES, MOST_FILES = 64 << 30, 64
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def listed_adapters(link: Link) -> tuple[AdapterEntry, ...]:
    """What the coordinator has for this device, newest run first.

    Raises:
        IntegrityFailed: a name would lead elsewhere, or a size makes no sense.
    """
    entries = link.adapters()
    for entry in entries:
        names = [entry.run_id, entry.slot, *(file.name for file in entry.files)]
        sizes = sum(file.size_bytes for file in entry.files)
        if (
            not all(_PLAIN.fullmatch(name) for name in names)
            or len({file.name for file in entry.files}) != len(entry.files)
            or not all(_SHA256.fullmatch(file.sha256) for file in entry.files)
            or len(entry.files) > MOST_FILES
            or sizes > MOST_BYTES
        ):
            raise IntegrityFailed("Expected a list of adapters by plain names and digests, found another.")
    return entries


def fetch_adapter(link: Link, entry: AdapterEntry, folder: Path) -> int:
    """Make ``folder`` hold exactly this adapter; returns the bytes that were fetched, 0 if it was there.

    Args:
        link: to the coordinator.
        entry: of ``listed_adapters``.
        folder: replaced whole, once everything is there.

    Raises:
        IntegrityFailed: a file is not what the list says.
        ResourceMissing: the adapter was replaced meanwhile, or the disk is too small.
    """
    if _holds(folder, entry):
        return 0
    total = sum(file.size_bytes for file in entry.files)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < total:
        raise ResourceMissing(f"Expected {total:,} bytes free at {folder.parent}, found {free:,}; make room.")
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        for file in entry.files:
            _fetch(link, entry.run_id, file, staging / file.name)
        sync(staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return total


def _fetch(link: Link, run_id: str, file: AdapterFile, path: Path) -> None:
    content, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        for piece in link.adapter_file(run_id, file):
            size += len(piece)
            if size > file.size_bytes:
                break
            content.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    if size != file.size_bytes or content.hexdigest() != file.sha256:
        raise IntegrityFailed(
            f"Expected {file.name} with {file.size_bytes} bytes and SHA-256 {file.sha256[:16]}..., found other "
            "content; nothing was kept. Try again, or ask the coordinator's operator."
        )


def _holds(folder: Path, entry: AdapterEntry) -> bool:
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {file.name for file in entry.files}:
        return False
    for file in entry.files:
        with (folder / file.name).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                return False
    return True
